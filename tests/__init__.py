# A regular package, because torch-fidelity installs one of this name, which would come before a folder without this file.
