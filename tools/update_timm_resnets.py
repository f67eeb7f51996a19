"""Write the package's table of timm's ResNets from the networks that the installed timm builds.

Run `python tools/update_timm_resnets.py` when a test says that the table differs from the installed timm.
"""

from timm_se_plugin.models._timm_resnets import write_table

if __name__ == '__main__':
    write_table()
