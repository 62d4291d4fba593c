// Token ids of texts by llama.cpp.
//
//   tokens VOCABULARY.gguf < TEXTS > IDS 2> ENDS
//
// Behind each text is "\n__ggml_vocab_test__\n", as in llama.cpp's models/ggml-vocab-*.gguf.inp.
// IDS has a line for each, without special tokens; ENDS the ids that end an answer, and whether
// texts begin with BOS and end with EOS.
//   g++ -O1 -std=c++17 -I LLAMA/include -I LLAMA/ggml/include -o tokens tokens.cpp
//       -L LLAMA/build/bin -lllama

#include <cstdio>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include "llama.h"

static void be_silent(ggml_log_level, const char *, void *) {}

static void print_ids(const llama_vocab * vocab, const std::string & text) {
    std::vector<llama_token> ids(text.size() + 8);
    const int num = llama_tokenize(
        vocab, text.data(), (int) text.size(), ids.data(), (int) ids.size(), false, false);
    for (int index = 0; index < num; ++index) {
        printf(index == 0 ? "%d" : " %d", ids[index]);
    }
    printf("\n");
}

int main(int argc, char ** argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s VOCABULARY.gguf < TEXTS\n", argv[0]);
        return 2;
    }
    llama_log_set(be_silent, nullptr);
    llama_model_params params = llama_model_default_params();
    params.vocab_only = true;
    llama_model * model = llama_model_load_from_file(argv[1], params);
    if (model == nullptr) {
        fprintf(stderr, "%s cannot be read\n", argv[1]);
        return 1;
    }
    const llama_vocab * vocab = llama_model_get_vocab(model);
    const std::string texts{std::istreambuf_iterator<char>(std::cin), {}};
    const std::string separator = "\n__ggml_vocab_test__\n";
    size_t start = 0;
    for (size_t end; (end = texts.find(separator, start)) != std::string::npos;) {
        print_ids(vocab, texts.substr(start, end - start));
        start = end + separator.size();
    }
    for (llama_token id = 0; id < llama_vocab_n_tokens(vocab); ++id) {
        if (llama_vocab_is_eog(vocab, id)) {
            fprintf(stderr, "%d ", id);
        }
    }
    const int adds[2] = {llama_vocab_get_add_bos(vocab), llama_vocab_get_add_eos(vocab)};
    fprintf(stderr, "\n%d %d\n", adds[0], adds[1]);
    llama_model_free(model);
    return 0;
}
