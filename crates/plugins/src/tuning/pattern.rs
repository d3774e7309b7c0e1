//! The regular expressions of the list of allowed parameters: those parts of their language that
//! such a list needs, so that no library is. What is beyond is refused, never passed over.
//!
//! Known are characters, `.`, `\` before a punctuation mark, `\d`, `\w`, `\s`, `[…]` with ranges and
//! `^`, `(…)`, `(?:…)`, `|`, `*`, `+`, `?`, `^` and `$`. An expression matches anywhere, unless it says
//! `^` or `$`.

/// How many steps a match may take: patterns that try everything are refused rather than run.
const STEPS: u32 = 200_000;
/// The longest text that anything matches, in characters: no parameter's name is longer, and the
/// stack holds a few calls for each of them.
const LONGEST: usize = 256;
/// How deep groups may be in each other.
const DEPTH: u32 = 32;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    /// One character among these ranges, or among none of them.
    One {
        ranges: Vec<(char, char)>,
        among: bool,
    },
    Start,
    End,
    /// One of several sequences.
    Any(Vec<Vec<Node>>),
    /// At least so often, and at most once or without end.
    Repeat {
        node: Box<Node>,
        least: u32,
        endless: bool,
    },
}

/// An expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern(Node);

impl Pattern {
    /// Reads an expression.
    ///
    /// # Errors
    /// What is not understood.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser { rest: text.chars().peekable(), depth: 0 };
        let node = parser.alternatives()?;
        match parser.rest.next() {
            None => Ok(Self(node)),
            Some(c) => Err(format!("{c:?} without its beginning")),
        }
    }

    /// True when it matches somewhere in a text; false also when that takes too long, or the text
    /// is too long to be a name.
    pub(super) fn matches(&self, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        if text.len() > LONGEST {
            return false;
        }
        let mut steps = STEPS;
        (0..=text.len()).any(|at| {
            Matcher { text: &text, steps: &mut steps }.node(&self.0, at, &mut |_, _| true)
        })
    }
}

struct Parser<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    depth: u32,
}

impl Parser<'_> {
    fn alternatives(&mut self) -> Result<Node, String> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err("too many groups in each other".to_owned());
        }
        let mut all = vec![self.sequence()?];
        while self.rest.next_if_eq(&'|').is_some() {
            all.push(self.sequence()?);
        }
        self.depth -= 1;
        Ok(Node::Any(all))
    }

    fn sequence(&mut self) -> Result<Vec<Node>, String> {
        let mut all = Vec::new();
        while let Some(c) = self.rest.next_if(|c| !matches!(c, '|' | ')')) {
            let node = match c {
                '^' => Node::Start,
                '$' => Node::End,
                '.' => Node::One { ranges: Vec::new(), among: false },
                '[' => self.class()?,
                '(' => self.group()?,
                '\\' => self.escape()?,
                '*' | '+' | '?' => return Err(format!("{c:?} with nothing before it")),
                '{' => return Err("\"{\": counts are not supported".to_owned()),
                c => one(c),
            };
            all.push(self.repeated(node)?);
        }
        Ok(all)
    }

    fn repeated(&mut self, node: Node) -> Result<Node, String> {
        let Some(c) = self.rest.next_if(|c| matches!(c, '*' | '+' | '?')) else { return Ok(node) };
        if let Some(c) = self.rest.peek().filter(|c| matches!(c, '*' | '+')) {
            return Err(format!("{c:?} after another repetition"));
        }
        // As few as possible instead of as many: the same for a question of yes or no.
        self.rest.next_if_eq(&'?');
        let (least, endless) = (u32::from(c == '+'), c != '?');
        Ok(Node::Repeat { node: Box::new(node), least, endless })
    }

    fn group(&mut self) -> Result<Node, String> {
        if self.rest.next_if_eq(&'?').is_some() && self.rest.next() != Some(':') {
            return Err("\"(?\": only \"(?:\" is supported".to_owned());
        }
        let node = self.alternatives()?;
        match self.rest.next() {
            Some(')') => Ok(node),
            _ => Err("\"(\" without \")\"".to_owned()),
        }
    }

    fn escape(&mut self) -> Result<Node, String> {
        let c = self.rest.next().ok_or("\"\\\" at the end")?;
        let ranges = match c.to_ascii_lowercase() {
            'd' => vec![('0', '9')],
            'w' => vec![('0', '9'), ('A', 'Z'), ('a', 'z'), ('_', '_')],
            's' => [' ', '\t', '\n', '\r', '\u{c}'].map(|c| (c, c)).to_vec(),
            c if c.is_ascii_punctuation() => return Ok(one(c)),
            _ => return Err(format!("\"\\{c}\" is not supported")),
        };
        Ok(Node::One { ranges, among: c.is_ascii_lowercase() })
    }

    fn class(&mut self) -> Result<Node, String> {
        let among = self.rest.next_if_eq(&'^').is_none();
        let mut ranges: Vec<(char, char)> = Vec::new();
        loop {
            let from = match self.rest.next() {
                None => return Err("\"[\" without \"]\"".to_owned()),
                Some(']') if !ranges.is_empty() => return Ok(Node::One { ranges, among }),
                Some('[') if self.rest.peek() == Some(&':') => {
                    return Err("\"[:\": named classes are not supported".to_owned());
                }
                Some('\\') => match self.escape()? {
                    Node::One { ranges: more, among: true } if !is_one(&more) => {
                        ranges.extend(more);
                        continue;
                    }
                    Node::One { ranges: more, among: true } => more[0].0,
                    _ => return Err("a negated class inside \"[…]\" is not supported".to_owned()),
                },
                Some(c) => c,
            };
            let mut to = from;
            let mut ahead = self.rest.clone();
            if ahead.next() == Some('-') && ahead.next().is_some_and(|c| c != ']') {
                self.rest.next();
                to = match self.rest.next() {
                    Some('\\') => self.rest.next().ok_or("\"\\\" at the end")?,
                    Some(c) => c,
                    None => from,
                };
            }
            if to < from {
                return Err(format!("range {from}-{to} is empty"));
            }
            ranges.push((from, to));
        }
    }
}

fn one(c: char) -> Node {
    Node::One { ranges: vec![(c, c)], among: true }
}

fn is_one(ranges: &[(char, char)]) -> bool {
    matches!(ranges, [(from, to)] if from == to)
}

type Then<'a, 'n> = &'a mut dyn FnMut(&mut Matcher<'_>, usize) -> bool;

struct Matcher<'t> {
    text: &'t [char],
    steps: &'t mut u32,
}

impl Matcher<'_> {
    fn node(&mut self, node: &Node, at: usize, then: Then<'_, '_>) -> bool {
        if *self.steps == 0 {
            return false;
        }
        *self.steps -= 1;
        match node {
            Node::Start => at == 0 && then(self, at),
            Node::End => at == self.text.len() && then(self, at),
            Node::One { ranges, among } => {
                let fits = |c: &char| ranges.iter().any(|(a, b)| (a..=b).contains(&c)) == *among;
                self.text.get(at).is_some_and(fits) && then(self, at + 1)
            }
            Node::Any(all) => all.iter().any(|sequence| self.sequence(sequence, at, then)),
            Node::Repeat { node, least, endless } => self.repeat(node, *least, *endless, at, then),
        }
    }

    fn sequence(&mut self, nodes: &[Node], at: usize, then: Then<'_, '_>) -> bool {
        match nodes.split_first() {
            None => then(self, at),
            Some((first, rest)) => {
                self.node(first, at, &mut |m, next| m.sequence(rest, next, then))
            }
        }
    }

    fn repeat(
        &mut self,
        node: &Node,
        least: u32,
        endless: bool,
        at: usize,
        then: Then<'_, '_>,
    ) -> bool {
        if least == 0 && then(self, at) {
            return true;
        }
        self.node(node, at, &mut |m, next| {
            // One that matches nothing matches nothing for ever.
            let goes_on = next > at;
            match endless {
                true if goes_on => m.repeat(node, 0, true, next, then),
                _ => then(m, next),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches() {
        let key = "net.ipv4.conf.eth0.arp_filter";
        for (pattern, wanted) in [
            ("^net.core.somaxconn$", false),
            (r"^net\.ipv4\.conf\.[a-z0-9]*\.arp_filter$", true),
            (r"^net\.ipv4\.conf\.[^.]+\.", true),
            (r"^net\.ipv6", false),
            ("arp_f", true),
            ("net.*filter", true),
            ("^net.*filte$", false),
            ("^(net.core|net.ipv4).*", true),
            ("^(?:net.core|net.ipv6).*", false),
            (r"eth\d\.arp", true),
            (r"eth[\d_]\.arp", true),
            (r"eth\D\.arp", false),
            ("^nett?.?ipv4", true),
            ("^.*$", true),
            ("", true),
            ("(a*)*$", true),
            ("(a|b|)*x", false),
            ("[]x]", false),
            ("[a-]rp", true),
            (r"\w+\.\w+\.conf", true),
        ] {
            assert_eq!(Pattern::parse(pattern).unwrap().matches(key), wanted, "{pattern}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for bad in [
            "[",
            "[a",
            "(",
            ")",
            "a)",
            "*",
            "a**",
            "a{2}",
            r"\",
            r"\b",
            r"\pL",
            "(?i)a",
            "[z-a]",
            "[[:alpha:]]",
            "a|*",
            "[]",
        ] {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
        assert!(Pattern::parse(&"(".repeat(10_000)).is_err());
    }

    /// Whatever a list holds: no panic, and an end.
    #[test]
    fn patterns_by_chance() {
        let mut state = 7u64;
        let mut next = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as usize % n
        };
        let pieces = [
            "a", ".", "*", "+", "?", "^", "$", "[", "]", "(", ")", "|", "\\", "d", "-", "^", "(?:",
            "[a-z]", "\\d", "{", "é", ".*", "(a|b)*",
        ];
        let mut understood = 0;
        for _ in 0..5000 {
            let pattern: String = (0..next(12)).map(|_| pieces[next(pieces.len())]).collect();
            if let Ok(pattern) = Pattern::parse(&pattern) {
                understood += 1;
                pattern.matches("net.ipv4.conf.eth0.arp_filter");
            }
        }
        assert!(understood > 500, "{understood}");
        let all = Pattern::parse("^(a|b)*$").unwrap();
        assert!(all.matches(&"ab".repeat(128)) && !all.matches(&"ab".repeat(100_000)));
    }

    /// Nested repetitions try everything: that ends, with a no.
    #[test]
    fn no_match_takes_for_ever() {
        let pattern = Pattern::parse("^((a*)*b?)*$").unwrap();
        assert!(!pattern.matches(&format!("{}c", "a".repeat(60))));
    }
}
