# torch-fidelity installs a package of this name, which would come before a folder without this file.
