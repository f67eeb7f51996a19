"""The command timm-se detect compare."""

from timm_se_plugin.commands import main

if __name__ == '__main__':
    main(command='detect compare')
