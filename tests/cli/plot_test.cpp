// `ncollapse plot` from outside: what it reads, the scripts and data it writes, and the pictures.
#include <expat.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "tests/cli/recordings.hpp"
#include "tests/cli/run_command.hpp"

namespace ncollapse::test {
namespace {

int occurrences(const std::string& text, const std::string& word) {
  int count = 0;
  for (auto at = text.find(word); at != std::string::npos; at = text.find(word, at + word.size())) ++count;
  return count;
}

/// A .dat file: its column names, and its lines as words.
struct Table {
  std::vector<std::string> names;
  std::vector<std::vector<std::string>> lines;

  explicit Table(const std::string& file) {
    std::istringstream text(read_file(file));
    for (std::string line; std::getline(text, line);) {
      if (line.starts_with('#')) continue;
      std::istringstream stream(line);
      std::vector<std::string> words;
      for (std::string word; stream >> word;) words.push_back(word);
      if (names.empty())
        names = words;
      else
        lines.push_back(words);
    }
  }
  bool has(const std::string& name) const { return std::find(names.begin(), names.end(), name) != names.end(); }
  /// The word under the name; a word that says so when there is none.
  std::string at(std::size_t line, const std::string& name) const {
    const auto column = static_cast<std::size_t>(std::find(names.begin(), names.end(), name) - names.begin());
    return line < lines.size() && column < lines[line].size() ? lines[line][column] : "no such cell";
  }
};

/// The texts of all elements of one kind in an SVG; a failed expectation when the file is not well-formed XML.
std::vector<std::string> svg_texts(const std::string& file, const std::string& element) {
  struct State {
    std::string wanted;
    bool inside = false;
    std::vector<std::string> texts;
  } state{.wanted = element, .inside = false, .texts = {}};
  XML_Parser parser = XML_ParserCreate(nullptr);
  XML_SetUserData(parser, &state);
  XML_SetElementHandler(
      parser,
      [](void* data, const XML_Char* name, const XML_Char**) {
        auto& current = *static_cast<State*>(data);
        if (name != current.wanted) return;
        current.inside = true;
        current.texts.emplace_back();
      },
      [](void* data, const XML_Char* name) {
        auto& current = *static_cast<State*>(data);
        if (name == current.wanted) current.inside = false;
      });
  XML_SetCharacterDataHandler(parser, [](void* data, const XML_Char* text, int length) {
    auto& current = *static_cast<State*>(data);
    if (current.inside) current.texts.back().append(text, static_cast<std::size_t>(length));
  });
  const std::string text = read_file(file);
  EXPECT_EQ(XML_Parse(parser, text.data(), static_cast<int>(text.size()), 1), XML_STATUS_OK)
      << file << " line " << XML_GetCurrentLineNumber(parser) << ": " << XML_ErrorString(XML_GetErrorCode(parser));
  XML_ParserFree(parser);
  return state.texts;
}

/// gnuplot makes a group of each plotted curve.
std::ptrdiff_t curves_in(const std::string& svg) {
  const auto titles = svg_texts(svg, "title");
  return std::count_if(titles.begin(), titles.end(),
                       [](const auto& title) { return title.starts_with("gnuplot_plot_"); });
}

/// How many labels and legend entries of the picture hold these words.
std::ptrdiff_t labels_with(const std::string& svg, const std::string& words) {
  const auto labels = svg_texts(svg, "text");
  return std::count_if(labels.begin(), labels.end(),
                       [&](const auto& label) { return label.find(words) != std::string::npos; });
}

class Plot : public testing::Test {
 protected:
  Outcome plot(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), "plot");
    arguments.insert(arguments.end(), {"--out", out_});
    return run_command(arguments);
  }
  /// Scripts and data alone, on a machine without gnuplot.
  void write_only(const std::vector<std::string>& files) const {
    const Path no_gnuplot(folder_.path("empty"));
    const Outcome run = plot(files);
    EXPECT_EQ(run.exit_code, kInternal) << run.err;
    EXPECT_EQ(words_in(run.err, {"gnuplot", "not installed", "gnuplot-nox"}), "");
  }
  std::string out(const std::string& name) const { return out_ + "/" + name; }
  bool made(const std::string& name) const { return std::filesystem::exists(out(name)); }

  /// The call fails with this exit code, says all the words, and draws nothing.
  void expect_error(const std::vector<std::string>& arguments, int code, const std::vector<std::string>& words) const {
    const Outcome run = plot(arguments);
    EXPECT_EQ(run.exit_code, code) << run.err;
    EXPECT_EQ(run.out, "");
    EXPECT_NE(run.err.find("ncollapse: error: "), std::string::npos) << run.err;
    EXPECT_EQ(words_in(run.err, words), "");
    EXPECT_FALSE(std::filesystem::is_directory(out_));
  }

  TemporaryDirectory folder_;
  std::string out_ = folder_.path("new/pictures");
};

// ------------------------------------------------------------------------------------------------ data and scripts

TEST_F(Plot, DataHoldTheValuesOfARun) {
  for (const auto& [schema, counter] :
       {std::pair{"ncollapse.simulation/1", "iteration"}, {"ncollapse.run/1", "epoch"}}) {
    write_only({folder_.write("run.jsonl", a_run(schema, counter))});
    const Table curves(out("curves.dat"));
    ASSERT_EQ(curves.lines.size(), 3U);
    EXPECT_EQ(curves.names.front(), counter);
    EXPECT_EQ(curves.at(2, counter), "3");
    EXPECT_EQ(curves.at(0, "nc1_pinv"), "0.1");
    EXPECT_EQ(curves.at(1, "nc1_pinv"), "NaN");  // undefined
    EXPECT_EQ(std::stod(curves.at(2, "nc1_pinv")), 1.25e-7);
    EXPECT_EQ(curves.at(1, "nc2_etf_h"), "?");  // not measured
    EXPECT_EQ(curves.at(2, "nc2_etf_h"), "0");
    EXPECT_EQ(curves.at(1, "loss"), "0.5");
    EXPECT_EQ(curves.at(1, "minimum"), "0.125");
    EXPECT_EQ(curves.at(1, "gap"), "0.375");
    EXPECT_FALSE(curves.has("nc2_etf_w"));

    const std::string script = read_file(out("curves.gp"));
    EXPECT_EQ(words_in(script, {"'curves.dat' using '" + std::string(counter) + "':'nc1_pinv'", "':'acc_top1_train'",
                                "set xlabel '" + std::string(counter) + "'", "L = 3, with bias, d = 8", "run.jsonl",
                                "set datafile missing '?'", "gnuplot curves.gp"}),
              "");
    // 0 throughout: named, but there is nothing a logarithmic axis could draw.
    EXPECT_EQ(script.find(":'nc3_dual'"), std::string::npos);
    EXPECT_NE(script.find("'nc3_dual  "), std::string::npos);
    EXPECT_EQ(script.find("nc2_etf_w"), std::string::npos);

    const Table spectrum(out("spectrum.dat"));
    ASSERT_EQ(spectrum.lines.size(), 2U);
    EXPECT_EQ(spectrum.lines[0], (std::vector<std::string>{"4.5", "1", "2.25", "2.1", "1.75", "1.5", "0.875"}));
    // A direction that has vanished has no angle.
    EXPECT_EQ(spectrum.lines[1], (std::vector<std::string>{"0", "3", "0", "1e-09", "0", "NaN", "NaN"}));
    EXPECT_NE(read_file(out("spectrum.gp")).find(std::string(counter) + " 3"), std::string::npos);
  }
}

TEST_F(Plot, DataHoldTheValuesOfAReport) {
  for (const int indent : {-1, 2}) {  // on one line, or as analyze writes it
    write_only({folder_.write("report.json", a_report().dump(indent))});
    const Table cosines(out("cosines.dat"));
    ASSERT_EQ(cosines.lines.size(), 4U);  // block_cos_w has none
    EXPECT_EQ(cosines.lines[0], (std::vector<std::string>{"block_cos_h", "0", "0", "12", "12", "-0.25"}));
    EXPECT_EQ(cosines.lines[1], (std::vector<std::string>{"block_cos_h", "0", "1", "12", "2", "0.125"}));
    EXPECT_EQ(cosines.lines[3], (std::vector<std::string>{"block_cos_h", "1", "1", "2", "2", "NaN"}));
    EXPECT_EQ(words_in(read_file(out("cosines.gp")), {"K = 4, d = 7, N = 26", "report.json", "'cosines.dat'"}), "");
    EXPECT_EQ(Table(out("spectrum.dat")).lines.size(), 2U);
    EXPECT_FALSE(made("curves.dat"));
  }
}

TEST_F(Plot, WhatAnalyzeAndSimulateWriteCanBeDrawn) {
  const std::string run = folder_.path("run.jsonl");
  ASSERT_EQ(run_command({"simulate", "--device", "cpu", "--counts", "5,5,3,2", "--layers", "2", "--dim", "6",
                         "--lambda-w", "2e-3", "--lambda-h", "1e-3", "--measure-every", "20", "--quiet", "--json", run})
                .exit_code,
            0);
  write_only({run});
  std::vector<Json> steps;
  std::istringstream text(read_file(run));
  for (std::string line; std::getline(text, line);)
    if (Json json = Json::parse(line); json.contains("metrics")) steps.push_back(json);
  const Table curves(out("curves.dat"));
  ASSERT_EQ(curves.lines.size(), steps.size());
  int compared = 0;
  for (std::size_t i = 0; i < steps.size(); ++i)
    for (const auto& name : curves.names) {
      const Json& place = steps[i].contains(name) ? steps[i] : steps[i]["metrics"];
      if (!place.contains(name) || place[name].is_null()) continue;
      EXPECT_EQ(std::stod(curves.at(i, name)), place[name].get<double>()) << name << " in step " << i;
      ++compared;
    }
  EXPECT_GE(compared, 40 * static_cast<int>(steps.size()));
  EXPECT_EQ(Table(out("spectrum.dat")).lines.size(), steps.back()["spectrum"].size());
  const std::string log = read_file(run);  // its last line holds the cosines
  const Json end = Json::parse(log.substr(log.rfind('\n', log.size() - 2)));
  EXPECT_EQ(end["block_cos_w"]["sizes"], Json({5, 3, 2}));
  const Table run_cosines(out("cosines.dat"));
  ASSERT_EQ(run_cosines.lines.size(), 4U * 3 * 3);  // measured and predicted
  EXPECT_EQ(std::stod(run_cosines.at(1, "cosine")), end["block_cos_h"]["cosines"][0][1].get<double>());
  EXPECT_EQ(run_cosines.at(9, "of"), "block_cos_h_predicted");
  EXPECT_EQ(std::stod(run_cosines.at(10, "cosine")), end["block_cos_h"]["predicted"][0][1].get<double>());
  EXPECT_EQ(std::stod(run_cosines.at(18, "cosine")), end["block_cos_w"]["cosines"][0][0].get<double>());
  EXPECT_EQ(std::stod(run_cosines.at(27, "cosine")), end["block_cos_w"]["predicted"][0][0].get<double>());
  for (const auto* key : {"block_cos_h", "block_cos_w"})  // the run has converged
    for (std::size_t i = 0; i < 3; ++i)
      for (std::size_t j = 0; j < 3; ++j)
        if (i != j || i == 0) {
          EXPECT_NEAR(end[key]["cosines"][i][j].get<double>(), end[key]["predicted"][i][j].get<double>(), 1e-4) << key;
        }
  // Predicted below measured, means beside classifiers, one scale.
  std::map<std::string, std::array<double, 2>> places;  // left and top of a map, as shares from the left and the bottom
  const std::string cosines_script = read_file(out("cosines.gp"));
  for (const auto* title :
       {"class means, block_cos_h", "class means, predicted", "classifiers, block_cos_w", "classifiers, predicted"}) {
    const auto begin = cosines_script.find("# " + std::string(title) + "\n");
    ASSERT_NE(begin, std::string::npos) << title;
    const auto number_after = [&](const std::string& words) {
      return std::stod(cosines_script.substr(cosines_script.find(words, begin) + words.size()));
    };
    places[title] = {number_after("set lmargin at screen "), number_after("set tmargin at screen ")};
  }
  for (const std::string of : {"class means", "classifiers"}) {
    const auto& [left, top] = places[of + (of == "classifiers" ? ", block_cos_w" : ", block_cos_h")];
    EXPECT_EQ((places[of + ", predicted"][0]), left) << of;
    EXPECT_LT((places[of + ", predicted"][1]), top) << of;
  }
  EXPECT_LT(places["class means, predicted"][0], places["classifiers, predicted"][0]);
  const auto scale = cosines_script.find("\nset colorbox");
  EXPECT_GT(scale, cosines_script.find("# classifiers, predicted"));
  EXPECT_EQ(cosines_script.find("\nset colorbox", scale + 1), std::string::npos);
  EXPECT_EQ(words_in(read_file(out("cosines.gp")), {"'L = 2, with bias, d = 6'", "'n_k = 5 x 2, 3, 2'",
                                                    "'lambda_W = 0.002, lambda_H = 0.001, run.jsonl, iteration "}),
            "");

  // No two curves of a panel look the same, even where dashes cannot be seen (few pixels, curves on each other), and
  // none of what should be drawn went missing.
  std::set<std::string> looks, keys;
  std::map<std::string, std::string> colours;
  const auto word_after = [](const std::string& line, const std::string& name) {
    const auto at = line.find(name);
    return at == std::string::npos ? "" : line.substr(at, line.find(' ', at + name.size()) - at);
  };
  std::istringstream script(read_file(out("curves.gp")));
  for (std::string line; std::getline(script, line);) {
    if (line.starts_with("plot")) looks.clear();
    const auto style = line.find(" with line"), title = line.find(" title '");
    if (style == std::string::npos || title == std::string::npos) continue;
    const std::string colour = word_after(line, " lc "), key = word_after(line.substr(title + 8), "");
    EXPECT_TRUE(looks.insert(colour + word_after(line, " pt ")).second) << line;
    keys.insert(key);
    colours[key] = colour;
  }
  EXPECT_EQ(colours["ufmb_w"], colours["ufmb_h"]);
  EXPECT_NE(colours["ufmb_w"], colours["ufmb_wh"]);
  for (const auto* key : {"nc1_pinv", "nc2_equinorm_h", "nc2_etf_w", "nc3_dual", "nc3_cos_min", "ufmb_w", "ufmb_sv",
                          "ufmb_sv_h", "ufmb_align_min", "acc_top1_train", "loss", "minimum", "gap"})
    EXPECT_TRUE(keys.contains(key)) << key;

  const std::string demo = NCOLLAPSE_DEMO_DATA, report = folder_.path("report.json");
  ASSERT_EQ(run_command({"analyze", "--device", "cpu", "--features", demo + "/features.npy", "--labels",
                         demo + "/labels.npy", "--weights", demo + "/W1.npy", "--quiet", "--json", report})
                .exit_code,
            0);
  write_only({report});
  const Json json = Json::parse(read_file(report));
  const Table cosines(out("cosines.dat"));
  const auto groups = json["block_cos_h"]["sizes"].size();
  ASSERT_EQ(cosines.lines.size(), 2 * groups * groups);
  EXPECT_EQ(std::stod(cosines.at(1, "cosine")), json["block_cos_h"]["cosines"][0][1].get<double>());
}

TEST_F(Plot, RunsStandSideBySideOnTheSameAxes) {
  const std::string one = folder_.write("one.jsonl", a_run("ncollapse.simulation/1", "iteration", 1));
  const std::string longer =
      folder_.write("six.jsonl", lines({header("ncollapse.simulation/1", 6), step("iteration", 0, {{"nc1_pinv", 20.0}}),
                                        step("iteration", 9, {{"nc1_pinv", 1e-9}, {"ufmb_w", 0.5}})}));
  write_only({one, folder_.write("report.json", a_report().dump(2)), longer});
  for (const auto* name : {"curves-1", "spectrum-1", "spectrum-2", "cosines-2", "curves-3", "spectrum-3"}) {
    EXPECT_TRUE(made(std::string(name) + ".gp")) << name;
    EXPECT_TRUE(made(std::string(name) + ".dat")) << name;
  }
  const std::string script = read_file(out("compare.gp"));
  EXPECT_EQ(words_in(script, {"'L = 1, with bias, d = 8'", "'L = 6, with bias, d = 8'",
                              "'curves-1.dat' using 'iteration':'nc1_pinv'",
                              "'curves-3.dat' using 'iteration':'nc1_pinv'", "set xrange [0:9]"}),
            "");
  EXPECT_EQ(script.find("'curves-1.dat' using 'iteration':'ufmb_w'"), std::string::npos);
  EXPECT_EQ(script.find("curves-2.dat"), std::string::npos);
  EXPECT_EQ(occurrences(script, "set yrange [1e-10:1e2]"), 1);  // of both runs' nc1_pinv, set once for the row
  EXPECT_NE(read_file(out("curves-1.gp")).find("set yrange [1e-8:1e0]"), std::string::npos);
}

TEST_F(Plot, TheFigureOfAPaper) {
  std::vector<std::string> files;
  for (const int layers : {1, 3, 6}) {
    Json first = header("ncollapse.run/1", layers);
    first["dataset"] = {{"name", "emnist"}, {"split", "balanced"}, {"input_dim", 784}};
    first["model"]["counts"] = {100, 500, 500, 300};
    first["model"]["lambda_w"] = std::vector<double>(static_cast<std::size_t>(layers), 1e-5);
    first["model"]["lambda_h"] = 1e-5;
    const Json metrics{{"nc1_pinv", 0.1}, {"ufmb_w", 0.2}, {"ufmb_h", 0.3},        {"ufmb_wh", 0.4},
                       {"gof_w", 0.0},    {"nc3_dual", 1}, {"acc_top1_train", 0.5}};
    files.push_back(folder_.write(std::to_string(layers) + ".jsonl", lines({first, step("epoch", 10, metrics)})));
  }
  write_only(files);
  const std::string script = read_file(out("collapse.gp"));
  EXPECT_EQ(occurrences(script, "'n_k = "), 0);  // the data set comes first
  EXPECT_EQ(occurrences(script, "'emnist balanced, n_k = 500 x 2, 300, 100'"), 3);
  EXPECT_EQ(occurrences(script, "'lambda_W = lambda_H = 1e-05, "), 3);
  for (const auto* key : {"nc1_pinv", "ufmb_w", "ufmb_h", "ufmb_wh", "acc_top1_train"})
    EXPECT_EQ(occurrences(script, "using 'epoch':'" + std::string(key) + "'"), 3) << key;
  EXPECT_EQ(words_in(script, {"'L = 1, with bias, d = 8'", "'L = 3, with bias, d = 8'", "'L = 6, with bias, d = 8'"}),
            "");
  EXPECT_EQ(script.find("nc3_dual"), std::string::npos);
  std::filesystem::remove_all(out_);
  write_only({files.back()});
  EXPECT_EQ(occurrences(read_file(out("collapse.gp")), "using 'epoch':'ufmb_w'"), 1);
  EXPECT_FALSE(made("compare.gp"));
}

TEST_F(Plot, ALogarithmicAxisOfIterationsLeavesZeroOut) {
  const std::string run =
      folder_.write("run.jsonl", lines({header("ncollapse.simulation/1"), step("iteration", 0, {{"nc1_pinv", 2.0}}),
                                        step("iteration", 4, {{"nc1_pinv", 1.0}})}));
  write_only({run, "--log-x"});
  EXPECT_EQ(words_in(read_file(out("curves.gp")), {"set logscale x", "set xrange [4:5]"}), "");
  std::filesystem::remove_all(out_);
  const std::string start = folder_.write(
      "start.jsonl", lines({header("ncollapse.simulation/1"), step("iteration", 0, {{"nc1_pinv", 2.0}})}));
  expect_error({start, "--log-x"}, kData, {"start.jsonl", "no step beyond 0"});
}

TEST_F(Plot, TitlesOfAnyFileNameAreSafe) {
  const std::string name = "it's \"a\" & <b>\xff\n'; system('touch x').jsonl";
  write_only({folder_.write(name, a_run("ncollapse.simulation/1", "iteration"))});
  const std::string script = read_file(out("curves.gp"));
  EXPECT_NE(script.find("'it''s \"a\" & <b>\xef\xbf\xbd?''; system(''touch x'').jsonl'"), std::string::npos) << script;
  EXPECT_EQ(Table(out("curves.dat")).lines.size(), 3U);
}

// ------------------------------------------------------------------------------------------------ wrong input

TEST_F(Plot, AKilledRunsLastLineIsLeftOut) {
  for (const auto* rest : {R"({"type":"step","iter)", "{\"type\":\"step\",\n", "{\"type\":\n\n"}) {
    const Path no_gnuplot(folder_.path("empty"));
    const Outcome run =
        plot({folder_.write("killed.jsonl", a_run("ncollapse.simulation/1", "iteration") + std::string(rest))});
    EXPECT_EQ(words_in(run.err, {"note", "killed.jsonl", "line 6", "left out"}), "");
    EXPECT_EQ(Table(out("curves.dat")).lines.size(), 3U);
  }
}

TEST_F(Plot, ABrokenLineIsAnError) {
  const Json good = step("iteration", 1, {{"nc1_pinv", 0.1}});
  const auto broken = [&](const std::string& line, const std::vector<std::string>& words) {
    std::vector<std::string> all{"broken.jsonl", "line 3"};
    all.insert(all.end(), words.begin(), words.end());
    expect_error({folder_.write("broken.jsonl",
                                lines({header("ncollapse.simulation/1"), good}) + line + "\n" + good.dump() + "\n")},
                 kData, all);
  };
  broken("{\"type\":\"step\"", {"not a JSON object"});
  broken("[1, 2]", {"not a JSON object"});
  broken("{\"iteration\": 3}", {"type"});
  broken("{\"type\": \"step\"}", {"neither", "epoch"});
  broken(R"({"type": "step", "iteration": "two"})", {"iteration", "not a number"});
  broken(R"({"type": "step", "epoch": 2})", {"epoch", "iteration"});
  broken(R"({"type": "step", "iteration": 2, "metrics": 3})", {"metrics", "not an object"});
  broken(R"({"type": "step", "iteration": 2, "metrics": {"nc1_pinv": "small"}})", {"nc1_pinv", "not a number"});
  broken(R"({"type": "step", "iteration": 2, "spectrum": {}})", {"spectrum", "not an array"});
  broken(R"({"type": "step", "iteration": 2, "spectrum": [3]})", {"spectrum", "not an object"});
  broken(R"({"type": "step", "iteration": 2, "status": {"nc1_pinv": 3}})", {"nc1_pinv", "not an object"});
  broken(R"({"type": "end", "per_class": {"counts": [1.5]}})", {"counts", "not whole"});
  for (const auto* count : {"-1", "9223372036854775808", "1e3"})
    broken(R"({"type": "end", "per_class": {"counts": [)" + std::string(count) + "]}}", {"counts", "not whole"});
  for (const auto* multiplicity : {"0", "-1", "1e300"})
    broken(R"({"type": "step", "iteration": 2, "spectrum": [{"multiplicity": )" + std::string(multiplicity) + "}]}",
           {"spectrum", "multiplicity"});
  broken(R"({"type": "end", "per_class": {"counts": [1, 2], "nc1_per_class": [1]}})", {"nc1_per_class", "1", "2"});
  broken(R"({"type": "end", "block_cos_h": {"sizes": [1], "cosines": [[1, 2]]}})", {"block_cos_h", "2", "1"});
  broken(R"({"type": "end", "block_cos_h": {"sizes": [2, 1], "cosines": [[1, 2, 3, 4], []]}})", {"block_cos_h", "4"});
  broken(R"({"type": "end", "block_cos_h": {"sizes": [2, 1], "predicted": [[1, 2], [3]]}})",
         {"\"predicted\" of \"block_cos_h\"", "row of 1"});
  broken(R"({"type": "end", "block_cos_h": {"sizes": [18446744073709551615], "cosines": [[1]]}})", {"not whole"});

  std::string report = a_report().dump(2);
  report.replace(report.find("\"metrics\""), 1, "?");
  const auto line = 1 + std::count(report.begin(), report.begin() + static_cast<long>(report.find("?metrics")), '\n');
  expect_error({folder_.write("report.json", report)}, kData, {"report.json", "line " + std::to_string(line) + ":"});
  Json uneven = a_report();
  uneven["block_cos_h"]["cosines"][0] = {1.0};
  expect_error({folder_.write("uneven.json", uneven.dump())}, kData, {"uneven.json", "block_cos_h", "1", "2"});
}

TEST_F(Plot, NestingWithoutEndIsAnErrorWhereverItStands) {
  const std::string deep = std::string(200000, '[') + std::string(200000, ']'), good = a_report().dump();
  const auto refused = [&](const std::string& text) {
    expect_error({folder_.write("deep.json", text)}, kData, {"deep.json", "nested"});
  };
  refused(deep);
  refused("{\n\"schema\": " + deep + "}");
  refused("{\"deep\": " + deep + "," + good.substr(1));
  refused("{\"schema\": \"ncollapse.run/1\", \"deep\": " + deep + "}\n");
  refused(lines({header("ncollapse.run/1")}) + "{\"type\": \"step\", \"epoch\": 1, \"metrics\": " + deep + "}\n");
}

TEST_F(Plot, FilesThatCannotBeDrawn) {
  const auto file = [&](const std::string& name, const std::string& text) { return folder_.write(name, text); };
  expect_error({file("new.jsonl", R"({"schema": "ncollapse.metrics/9"})")}, kData,
               {"new.jsonl", "ncollapse.metrics/9", "unknown", "ncollapse.run/1"});
  expect_error({file("other.json", "{\"a\": 1}\n")}, kData, {"other.json", "no \"schema\""});
  expect_error({file("list.json", "[1]\n")}, kData, {"list.json", "no \"schema\""});
  expect_error({file("steps.jsonl", lines({step("iteration", 1, {}), step("iteration", 2, {})}))}, kData,
               {"steps.jsonl", "line 2"});
  expect_error({file("text.txt", "no JSON\n")}, kData, {"text.txt", "line 1"});
  expect_error({file("two.jsonl", a_report().dump() + "\n" + a_report().dump() + "\n")}, kData,
               {"two.jsonl", "line 2"});
  expect_error({file("empty.json", "\n")}, kData, {"empty.json", "empty"});
  expect_error({folder_.path("missing.json")}, kData, {"missing.json", "No such file"});
  expect_error({"/proc/self/mem"}, kData, {"/proc/self/mem", "cannot be read"});  // nothing is at its begin
  std::filesystem::create_directory(folder_.path("a folder"));
  expect_error({folder_.path("a folder")}, kData, {"a folder", "directory", "a dump by --features"});
  expect_error({file("start.jsonl", header("ncollapse.run/1").dump() + "\n")}, kData, {"start.jsonl", "no steps"});
  expect_error({file("equal.json", R"({"schema": "ncollapse.metrics/1", "metrics": {}})")}, kData,
               {"equal.json", "nothing", "--lambda-w", "class means"});
  expect_error({file("none.jsonl", lines({header("ncollapse.run/1"), {{"type", "step"}, {"epoch", 1}}}))}, kData,
               {"none.jsonl", "can be drawn"});
  expect_error({file("i.jsonl", a_run("ncollapse.simulation/1", "iteration")),
                file("e.jsonl", a_run("ncollapse.run/1", "epoch"))},
               kUsage, {"i.jsonl", "e.jsonl", "share an axis"});
}

TEST_F(Plot, StepsThatGoBackAreRefused) {
  for (const int second : {20, 10})
    expect_error({folder_.write("back.jsonl", lines({header("ncollapse.run/1"), step("epoch", 20, {{"nc1_pinv", 2.0}}),
                                                     step("epoch", second, {{"nc1_pinv", 1.0}})}))},
                 kData, {"back.jsonl", "line 3", "epoch " + std::to_string(second), "epoch 20"});
}

TEST_F(Plot, GlobsAreExpanded) {
  for (const auto* name : {"run-2.jsonl", "run-10.jsonl"}) folder_.write(name, a_run("ncollapse.run/1", "epoch"));
  write_only({folder_.path("run-*.jsonl")});
  EXPECT_NE(read_file(out("curves-1.dat")).find("run-2.jsonl"), std::string::npos);
  EXPECT_NE(read_file(out("curves-2.dat")).find("run-10.jsonl"), std::string::npos);
  std::filesystem::remove_all(out_);
  expect_error({folder_.path("none-*.jsonl")}, kData, {"none-*.jsonl"});
}

// Without weight decays nothing is predicted: the simplex of balanced classes stands in.
TEST_F(Plot, TheCollapseOfARunWithoutWeightDecays) {
  const Json metrics{{"nc1_pinv", 0.1}, {"nc2_etf_h", 0.2}, {"nc2_etf_w", 0.3}, {"nc3_dual", 0.4}};
  const std::string plain = folder_.write("plain.jsonl", lines({header("ncollapse.run/1"), step("epoch", 1, metrics)}));
  write_only({plain});
  const std::string script = read_file(out("collapse.gp"));
  for (const auto* key : {"nc1_pinv", "nc2_etf_h", "nc2_etf_w", "nc3_dual"})
    EXPECT_EQ(occurrences(script, "using 'epoch':'" + std::string(key) + "'"), 1) << key;
  EXPECT_EQ(script.find("predicted"), std::string::npos);
}

TEST_F(Plot, WrongUsage) {
  const std::string run = folder_.write("run.jsonl", a_run("ncollapse.run/1", "epoch"));
  expect_error({run, "--format", "tex"}, kUsage, {"tex", "svg, png and pdf"});
  expect_error({}, kUsage, {"files"});
  EXPECT_EQ(run_command({"plot", run}).exit_code, kUsage);
  const Outcome over_a_file = run_command({"plot", run, "--out", run});
  EXPECT_EQ(over_a_file.exit_code, kData);
  EXPECT_EQ(words_in(over_a_file.err, {"run.jsonl", "cannot make this folder"}), "");
  const Outcome help = run_command({"plot", "--help"});
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_EQ(words_in(help.out, {"Examples:", "ncollapse plot L1.jsonl L3.jsonl L6.jsonl --out"}), "");
}

TEST_F(Plot, CosinesOfClassesThatAllDifferInSize) {
  const std::string run = folder_.path("run.jsonl");
  ASSERT_EQ(run_command({"simulate", "--device", "cpu", "--counts", "3,9,5", "--dim", "4", "--lambda-w", "2e-3",
                         "--lambda-h", "1e-3", "--quiet", "--json", run})
                .exit_code,
            0);
  write_only({run});
  const Table cosines(out("cosines.dat"));
  ASSERT_EQ(cosines.lines.size(), 4U * 3 * 3);
  EXPECT_EQ(cosines.at(1, "size_row") + " " + cosines.at(1, "size_column"), "9 5");
  EXPECT_LE(std::stod(cosines.at(1, "cosine")), 0);  // of these sizes
  EXPECT_EQ(cosines.at(4, "cosine"), "NaN");
}

// ------------------------------------------------------------------------------------------------ gnuplot

TEST_F(Plot, WithoutGnuplotScriptsAndDataAreKept) {
  std::filesystem::create_directories(out_);
  std::ofstream(out("curves.svg")) << "an old picture";
  write_only({folder_.write("run.jsonl", a_run("ncollapse.run/1", "epoch"))});
  for (const auto* name : {"curves.gp", "curves.dat", "spectrum.gp", "spectrum.dat"}) EXPECT_TRUE(made(name)) << name;
  EXPECT_FALSE(made("curves.svg"));  // it must not pass for a new one
}

TEST_F(Plot, WhatGnuplotSaysIsShownWhenItFails) {
  const std::string fake =
      folder_.write("gnuplot", "#!/bin/sh\necho half > collapse.svg\necho \"no $2 today\" >&2\nexit 3\n");
  std::filesystem::permissions(fake, std::filesystem::perms::owner_all);
  const Path only_this(std::filesystem::path(fake).parent_path().string());
  const Outcome run = plot({folder_.write("run.jsonl", a_run("ncollapse.run/1", "epoch"))});
  EXPECT_EQ(run.exit_code, kInternal);
  EXPECT_EQ(words_in(run.err, {"gnuplot failed on collapse.gp", "exit code 3", "no collapse.gp today"}), "");
  EXPECT_TRUE(made("collapse.gp"));
  EXPECT_FALSE(made("collapse.svg"));
}

TEST_F(Plot, GnuplotThatKeepsQuietAboutAFullDiskIsFoundOut) {
  for (const std::string image : {"svg", "png", "pdf"})
    for (const std::string& wrote : {std::string("true"), ": > collapse." + image, "echo '<svg' > collapse." + image}) {
      const std::string fake = folder_.write("gnuplot", "#!/bin/sh\n" + wrote + "\n");
      std::filesystem::permissions(fake, std::filesystem::perms::owner_all);
      const Path only_this(std::filesystem::path(fake).parent_path().string());
      const Outcome run = plot({folder_.write("run.jsonl", a_run("ncollapse.run/1", "epoch")), "--format", image});
      EXPECT_EQ(run.exit_code, kInternal) << wrote;
      EXPECT_EQ(words_in(run.err, {"collapse." + image, "not written a whole picture", "full"}), "");
      EXPECT_EQ(run.out, "");
      EXPECT_FALSE(made("collapse." + image)) << wrote;
    }
}

TEST_F(Plot, DrawsARun) {
  NEEDS_GNUPLOT();
  out_ = folder_.path("it's \"new\" $HOME/a b");
  const std::string file = folder_.write("a 'run' <&>.jsonl", a_run("ncollapse.run/1", "epoch"));
  const Outcome run = plot({file});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(run.err, "");
  EXPECT_EQ(words_in(run.out, {out("curves.svg"), out("spectrum.svg"), file}), "");
  for (const auto* word :
       {"nc1_pinv  ", "nc2_etf_h  ", "nc3_dual  ", "acc_top1_train  ", "loss  reached", "minimum  predicted", "gap  ",
        "epoch", "a 'run' <&>.jsonl", "L = 3, with bias, d = 8", "share or cosine"})
    EXPECT_EQ(labels_with(out("curves.svg"), word), 1) << word;
  EXPECT_EQ(curves_in(out("curves.svg")), 7);
  EXPECT_EQ(labels_with(out("spectrum.svg"), "predicted"), 2);
  EXPECT_EQ(labels_with(out("spectrum.svg"), "measured"), 3);
  EXPECT_EQ(curves_in(out("spectrum.svg")), 5);
  const Outcome quiet = plot({file, "--quiet"});
  EXPECT_EQ(quiet.exit_code, 0);
  EXPECT_EQ(quiet.out + quiet.err, "");
}

TEST_F(Plot, DrawsWhateverAValueMayBe) {
  NEEDS_GNUPLOT();
  for (const double loss : {1.0, 1e-17, 1e-300, 1.7e308}) {
    for (const double at : {0.0, 1e300}) {
      Json only = step("epoch", at, {{"acc_top1_train", 1.0}, {"nc3_cos_mean", -1.0}, {"nc1_pinv", loss}});
      only["loss"] = loss;
      only["spectrum"] = Json::array({{{"sigma", loss}, {"w_measured", 0.0}}});
      const Outcome run = plot({folder_.write("run.jsonl", lines({header("ncollapse.run/1"), only}))});
      EXPECT_EQ(run.exit_code, 0) << loss << " at " << at << ": " << run.err;
    }
  }
}

TEST_F(Plot, DrawsRunsSideBySide) {
  NEEDS_GNUPLOT();
  const Outcome run = plot({folder_.write("1.jsonl", a_run("ncollapse.simulation/1", "iteration", 1)),
                            folder_.write("2.jsonl", a_run("ncollapse.simulation/1", "iteration", 3)),
                            folder_.write("3.jsonl", a_run("ncollapse.simulation/1", "iteration", 6))});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_NE(run.out.find("compare.svg"), std::string::npos);
  EXPECT_EQ(curves_in(out("compare.svg")), 3 * 7);
  EXPECT_EQ(labels_with(out("compare.svg"), "nc1_pinv"), 1);  // one legend for all
  for (const auto* layers : {"1", "3", "6"})
    EXPECT_EQ(labels_with(out("compare.svg"), "L = " + std::string(layers) + ", with bias, d = 8"), 1);
}

// gnuplot is asked for a page as large as the picture, in points where that has pixels.
TEST_F(Plot, DrawsAReportAsPdf) {
  NEEDS_GNUPLOT();
  const std::string report = folder_.write("report.json", a_report().dump(2));
  ASSERT_EQ(plot({report}).exit_code, 0);
  const std::string svg = read_file(out("cosines.svg"));
  const Outcome run = plot({report, "--format", "pdf"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  for (const std::string name : {"cosines", "spectrum"}) {
    const std::string pdf = read_file(out(name + ".pdf"));
    EXPECT_EQ(pdf.substr(0, 5), "%PDF-") << name;
    EXPECT_NE(pdf.rfind("%%EOF"), std::string::npos) << name;
  }
  const auto number_behind = [](const std::string& text, const std::string& word) {
    const auto at = text.find(word);
    return at == std::string::npos ? 0.0 : std::stod(text.substr(at + word.size()));
  };
  const double width = number_behind(svg, "width=\"");
  EXPECT_GT(width, 100);
  EXPECT_NEAR(72 * number_behind(read_file(out("cosines.gp")), "noenhanced size "), width, 0.01);
}

TEST_F(Plot, DrawsAReportAsPng) {
  NEEDS_GNUPLOT();
  const Outcome run = plot({folder_.write("report.json", a_report().dump(2)), "--format", "png"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  for (const std::string name : {"cosines", "spectrum"}) {
    const std::string png = read_file(out(name + ".png")), script = read_file(out(name + ".gp"));
    ASSERT_GT(png.size(), 1000U) << name;
    EXPECT_EQ(png.substr(0, 8), "\x89PNG\r\n\x1a\n");
    EXPECT_EQ(png.substr(png.size() - 8, 4), "IEND");
    const auto number = [&](std::size_t at) {  // big endian
      unsigned value = 0;
      for (std::size_t i = at; i < at + 4; ++i) value = value << 8 | static_cast<unsigned char>(png[i]);
      return std::to_string(value);
    };
    EXPECT_NE(script.find("size " + number(16) + "," + number(20) + " "), std::string::npos) << script;
  }
}

}  // namespace
}  // namespace ncollapse::test
