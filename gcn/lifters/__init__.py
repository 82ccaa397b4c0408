"""Lifters other than PoseNet, behind its interface: (B, J, C) features to (B, J, 3) root-relative metres."""
