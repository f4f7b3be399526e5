"""Write the pages of docs/ that are made from the code.

    python -m tools.docs

A test compares them with what this gives.
"""

from tools.docs import architecture, configuration


def main() -> None:
    for page in (architecture, configuration):
        page.PAGE.write_text(page.page(), encoding="utf-8")


if __name__ == "__main__":
    main()
