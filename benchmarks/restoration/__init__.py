"""The experiments of "Generative Flows as a General Purpose Solution for Inverse Problems" (point estimates of faces).

    D="--data DATA --workers 2"
    python -m benchmarks.restoration.run $D --split validation           # weights of every method, on validation faces
    python -m benchmarks.restoration.run $D                              # table 1 on 192 test faces, weights as tuned
    python -m benchmarks.restoration.speed                               # table 2: time, memory and weights of both flows
    python -m benchmarks.restoration.figures                             # figures 1 and 3 to 6
    python -m benchmarks.restoration.page                                # docs/benchmarks/restoration.md

Every command is resumable and adds to what is in benchmarks/results/restoration.
"""
