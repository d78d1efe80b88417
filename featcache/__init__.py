"""featcache: transfer learning on frozen features."""
