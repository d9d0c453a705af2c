"""Who runs tasks: processes of this machine or a Ray cluster; what is finished is not done again."""
