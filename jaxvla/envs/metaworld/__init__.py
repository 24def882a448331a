"""Meta-World (Yu et al., 2019): 50 tasks of a Sawyer arm over a table, in MuJoCo. Needs the extra `metaworld`."""
