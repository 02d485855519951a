from bayeskit import compare

result = compare(
    "diabetes", methods=["exact", "sgpr", "svgp", "laplace", "deep_ensemble"], seeds=1, out="compare-diabetes"
)
print(result.to_markdown())  # quality, calibration, seconds, memory
result.report  # path of report.html
result.distances  # how far the methods' joint posteriors lie from each other
