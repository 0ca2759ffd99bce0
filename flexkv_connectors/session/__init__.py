"""For engines that give us pages: the host tier and all below it are ours."""
