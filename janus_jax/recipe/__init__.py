"""From a resolved config to a typed Stage with its data, optimizer and frozen parts."""
