"""The engines that can run the cut network: torch as it is, torch.compile, OpenVINO; see `base.Body`."""
