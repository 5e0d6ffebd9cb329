"""The published path written plainly, as the other side of every benchmark and as a reference of the whole step.

Independent of foveate: Pillow, torch, torchvision and the libraries' own modules only. It does the same arithmetic the
obvious way: crops cut and resized by Pillow on loader workers and shipped as float32, a padded square for the student,
regions pooled image by image, two dense passes in an evaluation, one image at a time.
"""
