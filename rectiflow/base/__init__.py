"""What every other package may lean on: errors, seeds, files, configs, logs. Nothing about images.

Only `philox` needs torch; import the modules one by one.
"""
