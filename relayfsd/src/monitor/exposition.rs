//! The text format of Prometheus: families of samples with labels.

use std::fmt::{Display, Write as _};

/// What a number means over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It only grows, and begins again where the counting process does.
    Counter,
    /// It is that of a moment.
    Gauge,
}

/// A name with its meaning.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) help: &'static str,
}

/// A text in that format.
#[derive(Default)]
pub(super) struct Exposition {
    text: String,
}

impl Exposition {
    /// Writes a family with its samples. A family without samples is left out.
    pub(super) fn family<'a>(
        &mut self,
        family: &Family,
        samples: impl IntoIterator<Item = (Vec<(&'static str, &'a str)>, f64)>,
    ) {
        let Family { name, kind, help } = *family;
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        let mut is_first = true;
        for (labels, value) in samples {
            if std::mem::take(&mut is_first) {
                self.write(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
            }
            self.text.push_str(name);
            for (i, (label, value)) in labels.iter().enumerate() {
                self.text.push(if i == 0 { '{' } else { ',' });
                self.write(format_args!("{label}=\""));
                self.label(value);
                self.text.push('"');
            }
            if !labels.is_empty() {
                self.text.push('}');
            }
            self.write(format_args!(" {value}\n"));
        }
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }

    /// Writes a label's value, in which three characters are escaped.
    fn label(&mut self, value: &str) {
        for c in value.chars() {
            match c {
                '\\' => self.text.push_str("\\\\"),
                '"' => self.text.push_str("\\\""),
                '\n' => self.text.push_str("\\n"),
                c => self.text.push(c),
            }
        }
    }

    fn write(&mut self, what: impl Display) {
        write!(self.text, "{what}").expect("writing to a string");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_empty_families_left_out() {
        let family = Family { name: "a_total", kind: Kind::Counter, help: "Help." };
        let mut out = Exposition::default();
        out.family(&family, []);
        out.family(&family, [(vec![("channel", "a\"b\\c\nd"), ("cpu", "0")], 7.0), (vec![], 0.5)]);
        assert_eq!(
            out.into_text(),
            "# HELP a_total Help.\n# TYPE a_total counter\na_total{channel=\"a\\\"b\\\\c\\nd\",cpu=\"0\"} 7\na_total 0.5\n"
        );
    }
}
