//! A picture as rectangles and words, before it is SVG or PNG.

use super::cells::{Cell, View};

/// Width that a plane of tokens is drawn to, in pixels.
const PLANE: usize = 416;

/// Most planes of a video in one picture.
const MAX_PLANES: usize = 12;

/// Space around planes and words.
const MARGIN: usize = 16;

/// An RGB colour.
pub type Color = [u8; 3];

const INK: Color = [40, 44, 52];
const COMPANION: Color = [222, 126, 20];

/// A rectangle with a border of one or two pixels.
#[derive(Clone, Debug)]
pub struct Rect {
    pub x: usize,
    pub y: usize,
    pub width: usize,
    pub height: usize,
    pub fill: Color,
    pub border: Option<Color>,
}

/// A word, its upper left corner and colour.
#[derive(Clone, Debug)]
pub struct Word {
    pub x: usize,
    pub y: usize,
    pub text: String,
    pub color: Color,
}

/// A picture.
#[derive(Clone, Debug, Default)]
pub struct Scene {
    pub width: usize,
    pub height: usize,
    pub rects: Vec<Rect>,
    pub words: Vec<Word>,
}

fn fill(cell: Cell) -> Color {
    match cell {
        Cell::NotHeld => [252, 238, 236],
        Cell::Other => [246, 246, 244],
        Cell::Unseen => [222, 228, 234],
        Cell::Masked => [244, 208, 111],
        Cell::Seen => [58, 124, 180],
        Cell::Full => [60, 157, 93],
        Cell::Query => [200, 40, 60],
    }
}

/// Draws a view: a matrix, a plane or a row of planes.
pub fn draw(view: &View) -> Scene {
    let mut scene = Scene::default();
    scene.word(MARGIN, MARGIN, &view.caption());
    let top = 3 * MARGIN;
    match view.rank {
        1 => scene.matrix(view, top),
        2 => scene.plane(view, 0, MARGIN, top, cell_size(view.axes[1].extent.max(view.axes[2].extent))),
        _ => scene.planes(view, top),
    }
    scene.legend(view);
    let right = scene.rects.iter().map(|rect| rect.x + rect.width);
    let right = right.chain(scene.words.iter().map(|word| word.x + 8 * word.text.len()));
    scene.width = right.max().unwrap_or(0) + MARGIN;
    scene.height = scene.bottom() + MARGIN;
    scene
}

/// Pixels of a token's side, for so many tokens in a row.
fn cell_size(tokens: usize) -> usize {
    (PLANE / tokens).clamp(3, 26)
}

impl Scene {
    fn bottom(&self) -> usize {
        let rects = self.rects.iter().map(|rect| rect.y + rect.height);
        rects.chain(self.words.iter().map(|word| word.y + 8)).max().unwrap_or(0)
    }

    fn word(&mut self, x: usize, y: usize, text: &str) {
        self.words.push(Word { x, y, text: text.to_owned(), color: INK });
    }

    fn cell(&mut self, x: usize, y: usize, size: usize, cell: Cell, is_companion: bool) {
        let gap = usize::from(size > 4);
        let side = size - gap;
        let border = (is_companion && size > 6).then_some(COMPANION);
        self.rects.push(Rect { x, y, width: side, height: side, fill: fill(cell), border });
    }

    /// Queries down, keys across.
    fn matrix(&mut self, view: &View, top: usize) {
        let extent = view.axes[2].extent;
        let size = cell_size(extent);
        self.word(MARGIN, top - 12, "queries down, keys across");
        let queries = view.axes[2].query_start..view.axes[2].query_start + view.axes[2].query_extent;
        for q in queries {
            let row = view.with_query([0, 0, q]);
            for k in 0..extent {
                // A query is its own key here, so it is shown as what it is to itself.
                let cell = if q == k { row.own_cell() } else { row.cell([0, 0, k]) };
                self.cell(MARGIN + k * size, top + q * size, size, cell, false);
            }
        }
    }

    /// The tokens of one index along the first axis.
    fn plane(&mut self, view: &View, first: usize, left: usize, top: usize, size: usize) {
        for y in 0..view.axes[1].extent {
            for x in 0..view.axes[2].extent {
                let token = [first, y, x];
                let (cell, is_companion) = (view.cell(token), view.is_companion(token));
                self.cell(left + x * size, top + y * size, size, cell, is_companion);
            }
        }
    }

    /// Planes of the first axis next to each other, around the query's.
    fn planes(&mut self, view: &View, top: usize) {
        let [frames, rows, columns] = view.axes.map(|axis| axis.extent);
        let shown = frames.min(MAX_PLANES);
        let start = view.query[0].saturating_sub(shown / 2).min(frames - shown);
        let size = (cell_size(rows.max(columns)) / 2).max(3);
        let in_a_row = (1200 / (columns * size + MARGIN)).clamp(1, 6);
        for i in 0..shown {
            let left = MARGIN + i % in_a_row * (columns * size + MARGIN);
            let y = top + 14 + i / in_a_row * (rows * size + 2 * MARGIN);
            self.word(left, y - 12, &format!("{}", start + i));
            self.plane(view, start + i, left, y, size);
        }
    }

    fn legend(&mut self, view: &View) {
        let has_tiles = view.tiling.is_some();
        let is_dilated = view.axes.iter().any(|axis| axis.dilation > 1);
        let entries = [
            (view.rank > 1, Cell::Query, "the query"),
            (true, Cell::Seen, if has_tiles { "seen, tile needs a mask" } else { "seen" }),
            (has_tiles, Cell::Full, "seen, tile needs no mask"),
            (has_tiles, Cell::Masked, "computed in vain"),
            (true, Cell::Unseen, "not seen"),
            (is_dilated, Cell::Other, "other residue"),
            (view.is_part(), Cell::NotHeld, "no key of the part"),
        ];
        let (mut x, y) = (MARGIN, self.bottom() + MARGIN);
        for (_, cell, text) in entries.iter().filter(|(is_shown, ..)| *is_shown) {
            self.rects.push(Rect { x, y, width: 10, height: 10, fill: fill(*cell), border: None });
            self.word(x + 15, y + 1, text);
            x += 15 + 8 * text.len() + 14;
        }
        let shares = if has_tiles { "same query tile" } else { "same window (stride)" };
        if view.rank > 1 && view.has_blocks() {
            let y = y + MARGIN;
            let border = Some(COMPANION);
            self.rects.push(Rect { x: MARGIN, y, width: 10, height: 10, fill: [255; 3], border });
            self.word(MARGIN + 15, y + 1, shares);
        }
    }

    /// The picture as SVG.
    pub fn to_svg(&self) -> String {
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
            self.width, self.height
        );
        for rect in &self.rects {
            let Rect { x, y, width, height, fill, border } = rect;
            svg += &format!(
                "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" fill=\"{}\"",
                hex(*fill)
            );
            if let Some(border) = border {
                svg += &format!(" stroke=\"{}\" stroke-width=\"2\"", hex(*border));
            }
            svg += "/>\n";
        }
        svg += "<g font-family=\"monospace\" font-size=\"12\">\n";
        for Word { x, y, text, color } in &self.words {
            svg += &format!("<text x=\"{x}\" y=\"{}\" fill=\"{}\">{text}</text>\n", y + 9, hex(*color));
        }
        svg + "</g>\n</svg>\n"
    }
}

fn hex([r, g, b]: Color) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}
