"""What can run the cut network: torch, Winograd's convolutions, torch.compile, OpenVINO; see `base.Body`."""
