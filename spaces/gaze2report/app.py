"""What `gaze-vlm space` shows, as a Space of the Hub."""

from gaze_vlm.space import build, launch

if __name__ == "__main__":
    launch(build())
