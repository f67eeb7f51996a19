"""``python -m timm_se_plugin`` is the command ``timm-se``."""

from .commands import main

if __name__ == '__main__':
    main()
