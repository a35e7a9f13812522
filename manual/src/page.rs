//! Makes a man page of a command's options and a hand-written part.

use std::io::{self, Write};

use clap::Command;
use clap_mangen::Man;

/// Date of the pages. A page that said when it was made would differ each day.
const DATE: &str = "2026-11-29";
/// Longest line of a page, in bytes: mandoc(1) complains about longer ones.
const COLUMNS_MAX: usize = 80;

/// Returns the text of a page.
pub(crate) fn page(name: &str, section: u8, mut command: Command, part: &str) -> String {
    let usage = command.render_usage().to_string();
    let command = without_first_line(command);
    let has_commands = command.get_subcommands().any(|sub| !sub.is_hide_set());
    let man = Man::new(command.display_name(name.to_owned()))
        .title(name.to_uppercase())
        .section(section.to_string())
        .date(DATE)
        .source(concat!("relayfs ", env!("CARGO_PKG_VERSION")))
        .manual("relayfs");
    let rendered = |render: &dyn Fn(&mut dyn Write) -> io::Result<()>| {
        let mut text = Vec::new();
        render(&mut text).expect("writing to memory");
        String::from_utf8(text).expect("the options are text")
    };
    let title = rendered(&|out| man.render_title(out));
    let (preamble, _) = title.split_at(title.find(".TH").expect("a title"));
    let body = |render: &dyn Fn(&mut dyn Write) -> io::Result<()>| {
        let text = rendered(render);
        text.strip_prefix(preamble).unwrap_or(&text).to_owned()
    };
    let pieces = [
        title.clone(),
        body(&|out| man.render_name_section(out)),
        synopsis(&usage),
        body(&|out| man.render_description_section(out)),
        grouped(&body(&|out| man.render_options_section(out))),
        if has_commands { body(&|out| man.render_subcommands_section(out)) } else { String::new() },
        part.to_owned(),
    ];
    tidied(&pieces.concat())
}

/// Takes the first line out of the description: the name of the page has it.
fn without_first_line(command: Command) -> Command {
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let long = command.get_long_about().map(ToString::to_string).unwrap_or_default();
    match long.strip_prefix(&about).map(str::trim_start) {
        Some(rest) if !rest.is_empty() => command.long_about(rest.to_owned()),
        _ => command,
    }
}

/// Returns the synopsis of a usage: the name of the program is bold.
fn synopsis(usage: &str) -> String {
    let lines = usage.trim_start_matches("Usage:").lines().map(str::trim).filter(|line| !line.is_empty());
    let lines = lines.map(|line| {
        let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
        format!("\\fB{}\\fR {}\n", escaped(name), escaped(rest))
    });
    format!(".SH SYNOPSIS\n{}", lines.collect::<Vec<_>>().join(".br\n"))
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

/// Makes one section of the options, with a heading for each group, in the place of a section for each group.
fn grouped(options: &str) -> String {
    let sections = options.split(".SH ").filter(|section| !section.is_empty());
    let (mut named, mut others) = (String::new(), "");
    for section in sections {
        match section.split_once('\n') {
            Some(("OPTIONS", rest)) => others = rest,
            Some((heading, rest)) => {
                let heading = heading.trim_matches('"').to_lowercase();
                let (first, following) = heading.split_at(heading.chars().next().map_or(0, char::len_utf8));
                named.push_str(&format!(".SS {}{following}\n{rest}", first.to_uppercase()));
            }
            None => {}
        }
    }
    let heading = if named.is_empty() || others.is_empty() { "" } else { ".SS Other\n" };
    format!(".SH OPTIONS\n{named}{heading}{others}")
}

/// Cuts long lines at spaces. An empty line, which mandoc(1) does not like, becomes a space between paragraphs.
fn tidied(text: &str) -> String {
    let mut tidy = String::new();
    let mut literal = false;
    for line in text.lines().map(str::trim_end) {
        literal = match line {
            ".EX" | ".nf" => true,
            ".EE" | ".fi" => false,
            _ => literal,
        };
        if line.is_empty() && !literal {
            tidy.push_str(".sp\n");
        } else if literal || line.starts_with('.') {
            tidy.push_str(line);
            tidy.push('\n');
        } else {
            wrap(line, &mut tidy);
        }
    }
    tidy
}

fn wrap(line: &str, out: &mut String) {
    let mut len = 0;
    for word in line.split(' ') {
        // At the begin of a line, these would make a request of it.
        let word = if word.starts_with(['.', '\'']) { format!("\\&{word}") } else { word.to_owned() };
        if len > 0 && len + 1 + word.len() > COLUMNS_MAX {
            out.push('\n');
            len = 0;
        } else if len > 0 {
            out.push(' ');
            len += 1;
        }
        out.push_str(&word);
        len += word.len();
    }
    out.push('\n');
}
