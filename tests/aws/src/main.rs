//! Runs the fake for clients that are no Rust tests: prints its URL and ends with its standard input.

use std::io::Read as _;

use kiln_aws_tests::Fake;

#[expect(clippy::print_stdout, reason = "the URL is what it is asked for")]
fn main() {
    let fake = Fake::start();
    println!("{}", fake.endpoint());
    std::io::stdin().read_to_end(&mut Vec::new()).ok();
}
