"""The command timm-se detect predict."""

from timm_se_plugin.commands import main

if __name__ == '__main__':
    main(command='detect predict')
