// `ncollapse report` from outside: the page as text, as XML, and in a browser.
#include <expat.h>
#include <gtest/gtest.h>
#include <png.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "tests/cli/recordings.hpp"
#include "tests/cli/run_command.hpp"

namespace ncollapse::test {
namespace {

/// The page as a tree walk sees it; a failed expectation when it is not well-formed XML.
struct Page {
  std::map<std::string, int> elements;            ///< how many of each name
  std::map<std::string, std::string> rows;        ///< cells of a table's row, joined with |, by their first cell
  std::vector<std::string> ids, links, captions;  ///< attributes id; href, xlink:href, src, url(...)
  std::vector<std::string> alternatives;          ///< aria-label of every picture
  std::string text;                               ///< all text outside pictures and style

  explicit Page(const std::string& file) {
    const std::string html = read_file(file);
    XML_Parser parser = XML_ParserCreate("UTF-8");
    XML_SetUserData(parser, this);
    XML_SetElementHandler(
        parser,
        [](void* page, const XML_Char* name, const XML_Char** attributes) {
          static_cast<Page*>(page)->begin(name, attributes);
        },
        [](void* page, const XML_Char* name) { static_cast<Page*>(page)->end(name); });
    XML_SetCharacterDataHandler(parser, [](void* page, const XML_Char* piece, int length) {
      static_cast<Page*>(page)->add({piece, static_cast<std::size_t>(length)});
    });
    EXPECT_EQ(XML_Parse(parser, html.data(), static_cast<int>(html.size()), 1), XML_STATUS_OK)
        << file << " line " << XML_GetCurrentLineNumber(parser) << ": " << XML_ErrorString(XML_GetErrorCode(parser));
    XML_ParserFree(parser);
  }

  /// The cells behind the first one; a failed expectation where there is no such row.
  std::string row(const std::string& first) const {
    const auto found = rows.find(first);
    EXPECT_NE(found, rows.end()) << first;
    return found == rows.end() ? "" : found->second;
  }

 private:
  void begin(const std::string& name, const XML_Char** attributes) {
    ++elements[name];
    open_.push_back(name);
    if (name == "tr") cells_.clear();
    if (name == "td" || name == "th") cells_.emplace_back();
    if (name == "figcaption") captions.emplace_back();
    for (; *attributes != nullptr; attributes += 2) {
      const std::string key = attributes[0], value = attributes[1];
      if (key == "id") ids.push_back(value);
      if (key == "aria-label") alternatives.push_back(value);
      if (key == "href" || key == "xlink:href" || key == "src" || key == "srcset" || key == "data")
        links.push_back(value);
      EXPECT_FALSE(key.starts_with("on")) << key;  // no scripts
      for (auto at = value.find("url("); at != value.npos; at = value.find("url(", at + 1))
        links.push_back(value.substr(at + 4, value.find(')', at) - at - 4));
    }
  }
  void end(const std::string& name) {
    open_.pop_back();
    if (name != "tr" || cells_.empty()) return;
    std::string rest;
    for (std::size_t i = 1; i < cells_.size(); ++i) rest += (i > 1 ? "|" : "") + cells_[i];
    rows[cells_.front()] = rest;
  }
  void add(const std::string& piece) {
    const auto inside = [&](const char* name) { return std::find(open_.begin(), open_.end(), name) != open_.end(); };
    if (inside("td") || inside("th")) cells_.back() += piece;
    if (inside("figcaption")) captions.back() += piece;
    if (!inside("svg") && !inside("style")) text += piece;
  }

  std::vector<std::string> open_, cells_;
};

/// Nothing is loaded from anywhere, and every reference inside the page leads somewhere.
void expect_self_contained(const Page& page) {
  const std::set<std::string> ids(page.ids.begin(), page.ids.end());
  EXPECT_EQ(ids.size(), page.ids.size()) << "an id is there twice";
  for (const auto& link : page.links) {
    ASSERT_TRUE(link.starts_with('#')) << link;
    EXPECT_TRUE(ids.contains(link.substr(1))) << link << " leads nowhere";
  }
  for (const auto* name : {"script", "link", "img", "iframe", "object", "embed", "image", "foreignObject"})
    EXPECT_FALSE(page.elements.contains(name)) << name;
}

class ReportPage : public testing::Test {
 protected:
  Outcome report(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), "report");
    arguments.insert(arguments.end(), {"--out", page_});
    return run_command(arguments);
  }
  void make(const std::vector<std::string>& arguments) const {
    const Outcome run = report(arguments);
    ASSERT_EQ(run.exit_code, 0) << run.err;
    EXPECT_EQ(run.err, "");
    EXPECT_EQ(words_in(run.out, {page_}), "");
  }
  void expect_error(const std::vector<std::string>& arguments, int code, const std::vector<std::string>& words) const {
    const Outcome run = report(arguments);
    EXPECT_EQ(run.exit_code, code) << run.err;
    EXPECT_EQ(run.out, "");
    EXPECT_NE(run.err.find("ncollapse: error: "), std::string::npos) << run.err;
    EXPECT_EQ(words_in(run.err, words), "");
    EXPECT_FALSE(std::filesystem::exists(page_));
  }
  /// analyze's arguments for the demo, with weight decays.
  static std::vector<std::string> demo() {
    const std::string demo = NCOLLAPSE_DEMO_DATA;
    return {"--features", demo + "/features.npy",
            "--labels",   demo + "/labels.npy",
            "--weights",  demo + "/W1.npy",
            "--bias",     demo + "/b.npy",
            "--lambda-w", "1e-3",
            "--lambda-h", "1e-3",
            "--device",   "cpu",
            "--threads",  "1"};
  }
  std::string demo_report() const {
    const std::string file = folder_.path("demo.json");
    std::vector<std::string> arguments = demo();
    arguments.insert(arguments.begin(), "analyze");
    arguments.insert(arguments.end(), {"--quiet", "--json", file});
    EXPECT_EQ(run_command(arguments).exit_code, 0);
    return file;
  }

  TemporaryDirectory folder_;
  std::string page_ = folder_.path("page.html");
};

// ------------------------------------------------------------------------------------------------ what the page says

TEST_F(ReportPage, ShowsAllOfAReport) {
  NEEDS_GNUPLOT();
  const std::string file = demo_report();
  make({file});
  const Page page(page_);
  expect_self_contained(page);
  const Json json = Json::parse(read_file(file));
  int metrics = 0;
  for (const auto& [key, value] : json["metrics"].items()) {
    if (value.is_null()) continue;
    const std::string row = page.row(key);
    const double shown = std::stod(row), real = value.get<double>();
    EXPECT_LE(std::abs(shown - real), 5e-7 * std::max(1e-3, std::abs(real)) + 5e-7 * (std::abs(real) >= 1e-3)) << key;
    ++metrics;
  }
  EXPECT_GT(metrics, 60);
  EXPECT_EQ(words_in(page.row("nc1_pinv"), {"\u2193", "within-class variability"}), "");
  EXPECT_EQ(words_in(page.row("acc_top1_train"), {"\u2191", "training accuracy"}), "");
  const auto& counts = json["per_class"]["counts"];
  for (std::size_t k = 0; k < counts.size(); ++k)
    EXPECT_EQ(page.row(std::to_string(k)).find(counts[k].dump() + "|"), 0U) << k;
  EXPECT_EQ(words_in(page.text, {"K = 10, d = 256, N = 1500, L = 1, with bias", "n_k = 250 x 2, 200 x 2",
                                 "lambda_W = lambda_H = 0.001",
                                 "zhu: Sigma_W mean over samples, centre sample mean, Sigma_B weights 1/K",
                                 "features.npy", "cpu", "Not computed", json["status"]["nc4_agree_test"]["why"],
                                 "nc4_agree_test", "How far the samples of a class scatter"}),
            "");
  EXPECT_EQ(page.elements.at("svg"), 2);
  ASSERT_EQ(page.alternatives.size(), 2U);
  EXPECT_EQ(words_in(page.alternatives[0], {"Predicted and measured singular values in 10 eigenspaces"}), "");
  EXPECT_EQ(words_in(page.alternatives[1], {"Heatmap of the mean cosines of class means", "5 class sizes"}), "");
  for (const auto& caption : page.captions) EXPECT_EQ(words_in(caption, {"d = 256", "lambda_W", "n_k = 250 x 2"}), "");
}

TEST_F(ReportPage, ADumpIsMeasuredAsAnalyzeDoesIt) {
  NEEDS_GNUPLOT();
  make({demo_report()});
  const Page of_report(page_);
  make(demo());
  const Page of_dump(page_);
  expect_self_contained(of_dump);
  EXPECT_GT(of_dump.rows.size(), 80U);
  EXPECT_EQ(of_dump.rows, of_report.rows);
  EXPECT_EQ(of_dump.alternatives, of_report.alternatives);
}

TEST_F(ReportPage, ShowsARunAtItsEnd) {
  NEEDS_GNUPLOT();
  make({folder_.write("run.jsonl", a_run("ncollapse.run/1", "epoch"))});
  const Page page(page_);
  expect_self_contained(page);
  EXPECT_EQ(page.row("nc1_pinv").find("1.25000e-07|"), 0U);
  EXPECT_EQ(page.row("loss").find("0.500000|"), 0U);
  EXPECT_EQ(page.row("minimum").find("0.125000|"), 0U);
  EXPECT_EQ(page.row("gap").find("0.375000|"), 0U);
  EXPECT_EQ(page.row("4.500000"), "1|2.250000|2.100000|1.750000|1.500000|0.875000");
  EXPECT_EQ(page.row("0"), "3|0|1.00000e-09|0|-|0");
  EXPECT_EQ(words_in(page.text, {"L = 3, with bias, d = 8", "epoch 3", "converged"}), "");
  EXPECT_EQ(page.elements.at("svg"), 3);  // collapse, curves, spectrum
  EXPECT_EQ(words_in(page.alternatives[0], {"3 measured steps", "nc1_pinv 1.25e-07", "acc_top1_train 1"}), "");
}

TEST_F(ReportPage, ShowsTheRankARunEndsAt) {
  NEEDS_GNUPLOT();
  const auto text_of = [&](const Json& prediction, const Json& end) {
    Json first = header("ncollapse.simulation/1");
    first["prediction"] = prediction;
    make({folder_.write("run.jsonl", lines({first, step("iteration", 1, {{"nc1_pinv", 0.1}}), end}))});
    return Page(page_).text;
  };
  const Json end = {{"type", "end"}, {"reason", "converged"}, {"rank", 3}};
  EXPECT_EQ(words_in(text_of({{"minimum", 0.125}, {"rank", 4}}, end), {"ended", "converged, rank 3 of 4 predicted"}),
            "");
  for (const auto& text :
       {text_of({{"minimum", 0.125}}, end), text_of({{"rank", 4}}, {{"type", "end"}, {"reason", "converged"}})})
    EXPECT_EQ(text.find("of 4 predicted"), std::string::npos) << text;
}

TEST_F(ReportPage, SeveralFilesShareAPage) {
  NEEDS_GNUPLOT();
  make({folder_.write("1.jsonl", a_run("ncollapse.run/1", "epoch", 1)),
        folder_.write("6.jsonl", a_run("ncollapse.run/1", "epoch", 6)),
        folder_.write("report.json", a_report().dump(2))});
  const Page page(page_);
  expect_self_contained(page);
  EXPECT_EQ(page.elements.at("section"), 3);
  EXPECT_EQ(page.elements.at("svg"), 2 + 2 * 2 + 2);  // together, of each run, of the report
  EXPECT_EQ(words_in(page.text, {"L = 1, with bias", "L = 6, with bias", "K = 4, d = 7, N = 26"}), "");
}

TEST_F(ReportPage, NothingToDrawLeavesTheTable) {
  make({folder_.write("plain.json", R"({"schema": "ncollapse.metrics/1", "metrics": {"nc1_pinv": 0.5, "new": 1},
                                        "precision": {"scatter": "fast", "scatter_error_bound": 2.5e-4}})")});
  const Page page(page_);
  EXPECT_EQ(words_in(page.text, {"fast: |error of the scatter| <= 2.5e-04"}), "");
  EXPECT_EQ(page.row("nc1_pinv").find("0.500000|"), 0U);
  EXPECT_FALSE(page.elements.contains("svg"));
}

TEST_F(ReportPage, AnyTextIsEscaped) {
  NEEDS_GNUPLOT();
  const std::string evil = "</style><script>alert('x')</script>&amp;\"\x01";
  Json first = header("ncollapse.run/1");
  first["dataset"] = {{"name", evil}};
  first[evil] = {{evil, evil}};
  Json last = step("epoch", 1, {{"nc1_pinv", 0.1}});
  last["status"] = {{"nc3_dual", {{"code", evil}, {"why", evil}}}};
  make({folder_.write("<b>&\xff'\".jsonl", lines({first, last, {{"type", "end"}, {"reason", evil}}}))});
  const Page page(page_);
  expect_self_contained(page);
  EXPECT_EQ(words_in(page.text, {"</style><script>alert('x')</script>&amp;\"?"}), "");
  EXPECT_EQ(page.row("</style><script>alert('x')</script>&amp;\"?"),
            "</style><script>alert('x')</script>&amp;\"?|nc3_dual");
}

// ------------------------------------------------------------------------------------------------ errors

TEST_F(ReportPage, WithoutGnuplotThereIsNoPage) {
  const std::string run = folder_.write("run.jsonl", a_run("ncollapse.run/1", "epoch"));
  const Path no_gnuplot(folder_.path("empty"));
  expect_error({run}, kInternal, {"gnuplot", "not installed", "gnuplot-nox"});
  std::ofstream(page_) << "an old page";
  EXPECT_EQ(report({run}).exit_code, kInternal);
  EXPECT_EQ(read_file(page_), "an old page");
}

TEST_F(ReportPage, AFailingGnuplotLeavesNothingBehind) {
  const std::string fake =
      folder_.write("gnuplot", "#!/bin/sh\necho '<svg' > collapse.svg\necho \"no $2\" >&2\nexit 3\n");
  std::filesystem::permissions(fake, std::filesystem::perms::owner_all);
  const std::string run = folder_.write("run.jsonl", a_run("ncollapse.run/1", "epoch")), place = folder_.path("tmp");
  std::filesystem::create_directory(place);
  const Path only_this(std::filesystem::path(fake).parent_path().string());
  const auto report_with = [&](const std::string& tmpdir) {
    return RunningCommand({"TMPDIR=" + tmpdir, NCOLLAPSE_COMMAND, "report", run, "--out", page_}, 0, "/usr/bin/env")
        .wait();
  };
  const Outcome nowhere = report_with(folder_.path("missing"));
  EXPECT_EQ(nowhere.exit_code, kData);
  EXPECT_EQ(words_in(nowhere.err, {"temporary files", "TMPDIR"}), "");
  const Outcome failed = report_with(place);
  EXPECT_EQ(failed.exit_code, kInternal);
  EXPECT_EQ(words_in(failed.err, {"gnuplot failed on collapse.gp", "exit code 3", "no collapse.gp"}), "");
  EXPECT_FALSE(std::filesystem::exists(page_));
  EXPECT_TRUE(std::filesystem::is_empty(place));
}

TEST_F(ReportPage, WrongUsage) {
  const std::string run = folder_.write("run.jsonl", a_run("ncollapse.run/1", "epoch"));
  expect_error({}, kUsage, {"nothing to report on", "--features"});
  expect_error({"--weights", run}, kUsage, {"--weights", "--features"});
  expect_error({"--features", run}, kUsage, {"--features", "--labels"});
  expect_error({run, "--lambda-w", "1e-3"}, kUsage, {"--lambda-w", "--features", "measured already"});
  const std::string before = read_file(run);
  const Outcome onto_itself = run_command({"report", run, "--out", folder_.path(".") + "/run.jsonl"});
  EXPECT_EQ(onto_itself.exit_code, kUsage);
  EXPECT_EQ(words_in(onto_itself.err, {"run.jsonl is read", "replace"}), "");
  EXPECT_EQ(read_file(run), before);
  for (const auto* option : {"--weights", "--test-features"}) {
    std::vector<std::string> onto_a_dump = demo();
    onto_a_dump.insert(onto_a_dump.begin(), "report");
    onto_a_dump.insert(onto_a_dump.end(), {option, run + ":key", "--out", run});
    const Outcome dump = run_command(onto_a_dump);
    EXPECT_EQ(dump.exit_code, kUsage) << dump.err;
    EXPECT_EQ(words_in(dump.err, {"run.jsonl is read"}), "");
    EXPECT_EQ(read_file(run), before);
  }
  expect_error({folder_.path("missing.jsonl")}, kData, {"missing.jsonl", "No such file"});
  expect_error({folder_.write("other.json", "{}")}, kData, {"other.json", "schema"});
  EXPECT_EQ(run_command({"report", run}).exit_code, kUsage);
  const Outcome nowhere = run_command({"report", run, "--out", folder_.path("no/page.html")});
  EXPECT_EQ(nowhere.exit_code, kData);
  EXPECT_EQ(words_in(nowhere.err, {"no/page.html", "does not exist"}), "");
  EXPECT_EQ(words_in(run_command({"report", "--help"}).out, {"Examples:", "ncollapse report run.jsonl --out"}), "");
}

TEST_F(ReportPage, MayGoToStandardOutput) {
  const Outcome run = run_command(
      {"report", folder_.write("plain.json", R"({"schema": "ncollapse.metrics/1", "metrics": {}})"), "--out", "-"});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(run.out.find("<!DOCTYPE html>"), 0U);
  EXPECT_TRUE(run.out.ends_with("</html>\n"));
}

// ------------------------------------------------------------------------------------------------ in a browser

std::string browser() {
  for (const auto* name : {"chromium-headless-shell", "chromium", "google-chrome"})
    if (const auto file = program_file(name); !file.empty()) return file;
  return "";
}

#define NEEDS_BROWSER() \
  NEEDS_GNUPLOT();      \
  if (browser().empty()) GTEST_SKIP() << "no Chromium is installed, so no browser has opened the page"

class InABrowser : public ReportPage {
 protected:
  /// Opens the page and keeps what the browser printed: options say what that is.
  Outcome open(const std::string& file, int width, int height, const std::vector<std::string>& options) const {
    // Containers lack the namespaces of a sandbox, and have little shared memory.
    std::vector<std::string> arguments{"--headless",
                                       "--no-sandbox",
                                       "--disable-dev-shm-usage",
                                       "--disable-gpu",
                                       "--hide-scrollbars",
                                       "--enable-logging=stderr",
                                       "--user-data-dir=" + folder_.path("profile"),
                                       "--window-size=" + std::to_string(width) + "," + std::to_string(height)};
    arguments.insert(arguments.end(), options.begin(), options.end());
    arguments.push_back("file://" + file);
    Outcome run = RunningCommand(arguments, 0, browser().c_str()).wait();
    EXPECT_EQ(run.exit_code, 0) << run.err;
    return run;
  }

  /// What a script finds in a copy of the page, which has to allow that one script.
  Json look(int width, const std::string& addition = "") const {
    std::string html = read_file(page_);
    const std::string policy = "style-src 'unsafe-inline'", head = "</title>";
    html.insert(html.find(policy), "script-src 'unsafe-inline'; ");
    html.insert(html.find(head) + head.size(), R"(<script>
      const troubles = [];
      addEventListener('error', e => troubles.push('error: ' + (e.message || e.target.tagName)), true);
      addEventListener('securitypolicyviolation', e => troubles.push('blocked: ' + e.blockedURI));
      addEventListener('load', () => {
        const rows = kind => document.querySelectorAll('table.' + kind + ' tbody tr td.number:first-of-type').length;
        const seen = document.createElement('pre');
        seen.textContent = 'SEEN' + JSON.stringify({
          troubles: troubles, width: innerWidth, page: document.documentElement.scrollWidth,
          loaded: performance.getEntriesByType('resource').map(e => e.name),
          classes: rows('classes'), spectrum: rows('spectrum'),
          metrics: document.querySelectorAll('table.metrics tbody code').length,
          pictures: [...document.querySelectorAll('figure svg')].map(s => {
            const box = s.getBoundingClientRect();
            return {left: box.left, top: box.top, right: box.right, height: box.height,
                    shapes: [...s.querySelectorAll('path, use, polygon')].filter(e => e.getBoundingClientRect().width > 0).length};
          })}) + 'END';
        document.body.append(seen);
      });
    </script>)");
    html.insert(html.find("</main>"), addition);
    const std::string copy = folder_.write("copy.html", html);
    const Outcome run = open(copy, width, 900, {"--dump-dom"});
    const auto begin = run.out.rfind("SEEN"), end = run.out.rfind("END");
    Json seen = begin == run.out.npos || end < begin ? Json() : Json::parse(run.out.substr(begin + 4, end - begin - 4));
    EXPECT_TRUE(seen.is_object()) << run.out.substr(0, 1000) << run.err;
    if (run.err.find("CONSOLE") != run.err.npos) seen["console"] = run.err;
    return seen;
  }
};

TEST_F(InABrowser, ThePageStandsAlone) {
  NEEDS_BROWSER();
  make({folder_.write("1.jsonl", a_run("ncollapse.run/1", "epoch", 1)),
        folder_.write("3.jsonl", a_run("ncollapse.run/1", "epoch", 3)), demo_report()});
  const Page page(page_);
  for (const int width : {1280, 400}) {
    const Json seen = look(width);
    EXPECT_EQ(seen["troubles"], Json::array()) << width;
    EXPECT_EQ(seen["loaded"], Json::array()) << width;
    EXPECT_FALSE(seen.contains("console")) << seen["console"];
    EXPECT_EQ(seen["width"], width);
    EXPECT_EQ(seen["page"], width) << "the page is wider than its window";
    EXPECT_EQ(seen["classes"], 10);
    EXPECT_EQ(seen["spectrum"], 2 + 2 + 10);
    EXPECT_GT(seen["metrics"], 60);
    ASSERT_EQ(seen["pictures"].size(), static_cast<std::size_t>(page.elements.at("svg")));
    for (const Json& picture : seen["pictures"]) {
      EXPECT_GE(picture["left"], 0) << picture;
      EXPECT_GT(picture["right"], 200) << picture;
      EXPECT_LE(picture["right"], width) << picture;
      EXPECT_GT(picture["height"], 50) << picture;
      EXPECT_GT(picture["shapes"], 10) << picture;
    }
  }
}

TEST_F(InABrowser, WhatIsLoadedFromElsewhereWouldBeSeen) {  // the test above can fail
  NEEDS_BROWSER();
  make({folder_.write("report.json", a_report().dump(2))});
  const Json seen = look(1280, "<img src=\"http://127.0.0.1:1/x.png\"/>");
  EXPECT_FALSE(seen["troubles"].empty());
  EXPECT_FALSE(seen["loaded"].empty());
  EXPECT_TRUE(seen.contains("console"));
}

/// A screenshot's pixels.
struct Shot {
  int width = 0, height = 0;
  std::vector<unsigned char> rgb;

  explicit Shot(const std::string& file) {
    png_image image{};
    image.version = PNG_IMAGE_VERSION;
    EXPECT_NE(png_image_begin_read_from_file(&image, file.c_str()), 0) << image.message;
    image.format = PNG_FORMAT_RGB;
    width = static_cast<int>(image.width);
    height = static_cast<int>(image.height);
    rgb.resize(PNG_IMAGE_SIZE(image));
    EXPECT_NE(png_image_finish_read(&image, nullptr, rgb.data(), 0, nullptr), 0) << image.message;
  }
  /// Pixels of about this colour in a part of the picture.
  int count(std::array<int, 3> colour, int left, int top, int right, int bottom) const {
    int pixels = 0;
    for (int y = std::max(0, top); y < std::min(height, bottom); ++y)
      for (int x = std::max(0, left); x < std::min(width, right); ++x) {
        const auto* pixel = rgb.data() + 3 * (y * width + x);
        bool near = true;
        for (std::size_t i = 0; i < 3; ++i) near = near && std::abs(pixel[i] - colour[i]) <= 24;
        pixels += near;
      }
    return pixels;
  }
};

TEST_F(InABrowser, PicturesAreDrawnOnThePage) {
  NEEDS_BROWSER();
  make({demo_report()});
  const Json seen = look(1000);
  const std::string file = folder_.path("shot.png");
  open(page_, 1000, 2000, {"--screenshot=" + file});
  const Shot shot(file);
  ASSERT_EQ(shot.width, 1000);
  ASSERT_EQ(seen["pictures"].size(), 2U);
  const auto count = [&](const Json& box, std::array<int, 3> colour) {
    const auto at = [&](const char* side) { return static_cast<int>(box[side].get<double>()); };
    return shot.count(colour, at("left"), at("top"), at("right"), at("top") + at("height"));
  };
  const std::array<int, 3> orange{0xD5, 0x5E, 0x00}, black{0, 0, 0}, blue{0x00, 0x72, 0xB2}, white{255, 255, 255};
  const Json &spectrum = seen["pictures"][0], &cosines = seen["pictures"][1];
  EXPECT_GT(count(spectrum, orange), 29 * 20);  // 29 dots and some in the legend: each a dozen pixels and more
  EXPECT_GT(count(spectrum, black), 500);       // circles and letters
  EXPECT_GT(count(spectrum, white), 100000);
  EXPECT_GT(count(cosines, blue), 1000);  // the largest cosine's cell
  EXPECT_GT(count(cosines, black), 500);
}

}  // namespace
}  // namespace ncollapse::test
