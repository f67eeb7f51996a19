"""The command timm-se complexity --published."""

from timm_se_plugin.commands import main

if __name__ == '__main__':
    main(command='complexity --published')
