"""OpenCV set up for results that do not depend on threads or on where an array lies in memory."""

import cv2


def make_repeatable() -> None:
    """Switch off OpenCV's own threads and Intel's IPP, for the whole process.

    IPP's sums round by the alignment of an array, so the same pixels can give other bits. Images here are small or cut
    into small ones, where OpenCV's threads cost more than they give; parallelism is over slides and patches.
    """
    cv2.setNumThreads(1)
    cv2.ipp.setUseIPP(False)
