"""The command timm-se demo."""

from timm_se_plugin.commands import main

if __name__ == '__main__':
    main(command='demo')
