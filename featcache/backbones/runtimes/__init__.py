"""What can run the cut network: torch, kernels in C, Winograd, torch.compile, OpenVINO; see `base.Body`."""
