"""The command timm-se convert."""

from timm_se_plugin.commands import main

if __name__ == '__main__':
    main(command='convert')
