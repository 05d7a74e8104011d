"""One self-contained HTML page and its pictures from result sets: `python -m analysis report SET ...`.

Every chart is drawn once, by Vega-Lite, at two widths, and stands in the page as SVG whose colours are CSS variables:
it is there without JavaScript, prints, follows the theme and opens at once. JavaScript adds what paper lacks: tables
that page and sort, marks that name their rows, the timeline of any run.
"""
