"""The command timm-se analyze."""

from timm_se_plugin.commands import main

if __name__ == '__main__':
    main(command='analyze')
