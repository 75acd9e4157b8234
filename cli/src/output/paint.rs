//! Colours, which are off without a terminal and with `NO_COLOR`.

use std::io::IsTerminal;

use console::Style;

/// Paints text, or leaves it as it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paint {
    is_on: bool,
}

impl Paint {
    pub(crate) fn stdout() -> Self {
        Self { is_on: std::io::stdout().is_terminal() && are_colours_wanted() }
    }

    pub(crate) fn stderr() -> Self {
        Self { is_on: std::io::stderr().is_terminal() && are_colours_wanted() }
    }

    /// Returns a paint that adds no colours.
    #[cfg(test)]
    pub(crate) fn plain() -> Self {
        Self { is_on: false }
    }

    #[cfg(test)]
    pub(crate) fn colourful() -> Self {
        Self { is_on: true }
    }

    fn apply(self, style: Style, text: &str) -> String {
        if self.is_on {
            style.force_styling(true).apply_to(text).to_string()
        } else {
            text.to_owned()
        }
    }

    /// A name of a shard, a stream or an application.
    pub(crate) fn name(self, text: &str) -> String {
        self.apply(Style::new().cyan(), text)
    }

    pub(crate) fn key(self, text: &str) -> String {
        self.apply(Style::new().yellow(), text)
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.apply(Style::new().dim(), text)
    }

    pub(crate) fn heading(self, text: &str) -> String {
        self.apply(Style::new().bold(), text)
    }

    pub(crate) fn good(self, text: &str) -> String {
        self.apply(Style::new().green(), text)
    }

    pub(crate) fn warn(self, text: &str) -> String {
        self.apply(Style::new().yellow(), text)
    }

    pub(crate) fn bad(self, text: &str) -> String {
        self.apply(Style::new().red().bold(), text)
    }
}

/// See <https://no-color.org>: any value but the empty one turns colours off.
fn are_colours_wanted() -> bool {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !is_set("NO_COLOR") && obeys_codes()
}

/// Returns false for a terminal that shows control codes instead of obeying them, as in some editors.
pub(crate) fn obeys_codes() -> bool {
    std::env::var_os("TERM").is_none_or(|terminal| terminal != "dumb")
}
