"""The command timm-se detect train."""

from timm_se_plugin.commands import main

if __name__ == '__main__':
    main(command='detect train')
