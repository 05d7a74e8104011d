"""Turn result sets into formulas, factors and predictions. Needs neither vLLM, torch nor a GPU."""
