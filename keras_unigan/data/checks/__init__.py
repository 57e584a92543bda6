"""Coded diagnoses of a study: all problems of its files in one pass, each with its fix.

`passes.check` reads every file once and gives a `findings.Report`; `repair.repair` writes repaired
copies beside it. No TensorFlow: the command answers at once.
"""
