"""The command timm-se push."""

from timm_se_plugin.commands import main

if __name__ == '__main__':
    main(command='push')
