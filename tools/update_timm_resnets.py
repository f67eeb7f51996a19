"""Write what is known of timm's ResNets, read from the networks that the installed timm builds, into the package.

Run it where a test says that timm has moved: python tools/update_timm_resnets.py
"""

from timm_se_plugin.models._timm_resnets import write_table

if __name__ == '__main__':
    write_table()
