//! Text for people: wrapped paragraphs and tables whose columns line up.

use console::measure_text_width;

/// A paragraph of words, indented, in lines of at most `width` columns.
pub fn wrap(text: &str, indent: usize, width: usize) -> String {
    let margin = " ".repeat(indent);
    let mut lines: Vec<String> = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && indent + measure_text_width(&line) + 1 + measure_text_width(word) > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines.iter().map(|l| format!("{margin}{l}")).collect::<Vec<_>>().join("\n")
}

/// How a column of a table is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// Rows of cells as lines, two blanks between columns. Cells may hold colours.
pub fn table(align: &[Align], rows: &[Vec<String>]) -> Vec<String> {
    let widths: Vec<usize> = (0..align.len())
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|c| measure_text_width(c)).max().unwrap_or(0))
        .collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(align).zip(&widths).map(|((cell, align), width)| {
            let pad = " ".repeat(width.saturating_sub(measure_text_width(cell)));
            match align {
                Align::Left => format!("{cell}{pad}"),
                Align::Right => format!("{pad}{cell}"),
            }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = vec![vec!["a".into(), "1".into()], vec!["long".into(), "1,000".into()]];
        assert_eq!(table(&[Align::Left, Align::Right], &rows), ["a         1", "long  1,000"]);
    }

    #[test]
    fn paragraphs_are_wrapped() {
        assert_eq!(wrap("one two three", 2, 10), "  one two\n  three");
        assert_eq!(wrap("", 2, 10), "  ");
    }
}
