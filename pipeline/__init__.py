"""Feature-cache, two-stage pipeline for audio deepfake detection."""
