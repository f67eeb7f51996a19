"""The command timm-se bench."""

from timm_se_plugin.commands import main

if __name__ == '__main__':
    main(command='bench')
