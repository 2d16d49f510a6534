"""One file per op: function, Module, and what torch.compile needs to know."""
