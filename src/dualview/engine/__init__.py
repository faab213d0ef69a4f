"""Running the model: the only room that knows hooks, batches, devices and disks."""
