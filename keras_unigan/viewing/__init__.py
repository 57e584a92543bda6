"""A local page that shows scans with their label maps and predictions, and segments dropped files.

The viewer is NiiVue, from the package ipyniivue of the extra `[view]`. `Viewer` serves the page on
127.0.0.1 and to whoever has its token; `gallery` holds what there is to see, `opening` finds it.
See docs/viewer.md.
"""

from keras_unigan.viewing.gallery import Entry, Gallery, Model
from keras_unigan.viewing.opening import open_gallery, open_model
from keras_unigan.viewing.server import Viewer

__all__ = ["Entry", "Gallery", "Model", "Viewer", "open_gallery", "open_model"]
