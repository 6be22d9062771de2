"""The beton format and the images in it: the contract between converters and loaders."""
