"""Training of TC-CLIP and ViFi-CLIP on the videos of a manifest: `dejavid train --method tcclip`."""
