"""Small random programs, run on the driver's own pool and on this project's; what differs is intended, or a defect."""
