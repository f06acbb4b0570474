"""Write the API reference: every module of saetools, from its docstrings, as pages of HTML (by pdoc)."""

import argparse
from pathlib import Path

import pdoc


def main() -> None:
    """Write the pages to the directory given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    templates = Path(__file__).with_name("reference")
    pdoc.render.configure(docformat="markdown", footer_text="saetools", search=True, template_directory=templates)
    pdoc.pdoc("saetools", output_directory=out)
    print(f"{out / 'index.html'}: {sum(1 for _ in out.rglob('*.html'))} pages")


if __name__ == "__main__":
    main()
