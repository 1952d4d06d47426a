"""Modules of torch to graphs, through torch.export."""
