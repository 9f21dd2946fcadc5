//! Lines over time as SVG, small enough for a README.

use std::fmt::Write;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 120.0;
const LEFT: f64 = 8.0;
const TOP: f64 = 20.0;

/// One panel: its title with the unit, and points of (seconds, value).
pub(super) struct Panel<'p> {
    pub(super) title: &'p str,
    pub(super) points: Vec<(f64, f64)>,
}

/// The panels, one below the other. Each begins at 0 and says how high it goes.
pub(super) fn svg(panels: &[Panel<'_>]) -> String {
    let (width, height) = (WIDTH + 2.0 * LEFT, (HEIGHT + TOP + 8.0) * panels.len() as f64);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (number, Panel { title, points }) in panels.iter().enumerate() {
        let top = TOP + number as f64 * (HEIGHT + TOP + 8.0);
        let (mut last_s, mut most) = (1.0, f64::MIN_POSITIVE);
        for &(at_s, value) in points {
            last_s = at_s.max(last_s);
            most = value.max(most);
        }
        let mut line = String::new();
        for (at_s, value) in points {
            let (x, y) = (LEFT + at_s / last_s * WIDTH, top + HEIGHT * (1.0 - value / most));
            write!(line, "{x:.1},{y:.1} ").expect("a string takes all");
        }
        let (base, text) = (top + HEIGHT, top - 6.0);
        let end = LEFT + WIDTH;
        write!(
            out,
            "<text x=\"{LEFT}\" y=\"{text}\">{title}: 0 to {most:.1}, over {last_s:.0} s</text>\n\
             <path d=\"M{LEFT},{top}V{base}H{end}\" fill=\"none\" stroke=\"#888\"/>\n\
             <polyline points=\"{}\" fill=\"none\" stroke=\"#06c\" stroke-width=\"1.5\"/>\n",
            line.trim_end()
        )
        .expect("a string takes all");
    }
    out + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_value_is_at_the_top_and_zero_at_the_bottom() {
        let panel = Panel { title: "p99, ms", points: vec![(0.0, 0.0), (10.0, 5.0)] };
        let svg = svg(&[panel]);
        assert!(svg.contains("points=\"8.0,140.0 648.0,20.0\""), "{svg}");
        assert!(svg.contains("p99, ms: 0 to 5.0, over 10 s"), "{svg}");
    }
}
