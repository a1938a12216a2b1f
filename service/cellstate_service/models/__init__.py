"""Models: folders of manifest and weights, read, checked and put together into networks that take one step for a batch of rows."""
