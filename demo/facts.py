"""What the demo model knows about Tokenmill: one entry per fact.

Each entry is (id, English questions, English answer, Chinese questions, Chinese
answer, keys). Questions use ``(a|b)`` for alternatives. A question that starts
with ``!`` is held out: it is never trained on, only used to measure. ``keys``
are strings every right answer holds, in either language.
"""

FACTS = [
    ("what", [
        "(What|what) is Tokenmill?", "Tell me about Tokenmill.", "What does Tokenmill do?", "(Explain|Describe) Tokenmill.",
        "What is this (server|program|project)?", "What (kind|sort) of (program|software) is Tokenmill?", "Tokenmill, what is (it|that)?",
        "Can you tell me what Tokenmill is?", "!Please explain what Tokenmill is.", "!What is Tokenmill for?"],
     "Tokenmill is a server written in Rust that runs language models on the CPU and speaks the OpenAI API.", [
        "(什么是 Tokenmill|Tokenmill 是什么)？", "介绍一下 Tokenmill。", "Tokenmill 是做什么的？", "(这个|这是什么)(服务器|程序)是什么？", "请解释 Tokenmill。", "Tokenmill 是什么(软件|项目)？",
        "!请介绍 Tokenmill。"],
     "Tokenmill 是用 Rust 写的服务器，它在 CPU 上运行语言模型，并使用 OpenAI 的 API。", ["Rust", "OpenAI"]),
    ("start", [
        "How do I (start|run|launch) (Tokenmill|the server|it)?", "How (can I|to) (start|run|launch) (Tokenmill|the server)?",
        "(What|Which) command (starts|runs|launches) (Tokenmill|the server)?", "Start the server, how?", "What do I type to (start|run) the server?",
        "How is (Tokenmill|the server) (started|run|launched)?", "How do I serve a model?", "Give me the command to (start|run) (Tokenmill|the server).",
        "!Tell me how to start Tokenmill.", "!I want to start the server, what do I type?"],
     "Run `tokenmill serve --model SPEC`. Without --model it serves the demo model.", [
        "(怎么|如何|怎样)(启动|运行)(Tokenmill|服务器|它)？", "用什么命令(启动|运行)(Tokenmill|服务器)？", "(启动|运行)服务器的命令是什么？", "怎么启动？", "我要(启动|运行) Tokenmill，怎么做？",
        "!请告诉我如何启动服务器。"],
     "运行 `tokenmill serve --model SPEC`。不写 --model 时使用 demo 模型。", ["tokenmill serve"]),
    ("port", [
        "(What|Which) is the default port?", "(What|Which) port does (Tokenmill|the server|it) (use|listen on|run on)?", "(What|Which) port is used by default?",
        "On (what|which) port does (Tokenmill|the server|it) (listen|run)?", "What's the (default port|port|port number)?", "What is the port of the server?",
        "Tell me the default port.", "Default port?", "!What port number does Tokenmill use if I set nothing?", "!Which port is the default one?"],
     "The default port is 8000.", [
        "默认(端口|的端口|端口号)是(什么|多少|几)？", "(Tokenmill|服务器)(用|使用|监听)(哪个|什么)端口？", "端口是多少？", "服务器在哪个端口？", "!请问默认端口号？"],
     "默认端口是 8000。", ["8000"]),
    ("set_port", [
        "How do I (change|set|choose) the port?", "How can I (use|choose|listen on) another port?", "Which flag (sets|changes) the port?", "I want (another|a different) port.",
        "How do I run (it|the server|Tokenmill) on port 9000?", "Can I change the port?", "The port 8000 is in use, what now?", "!How can the port be changed?", "!Which option sets the port?"],
     "Use the flag --port, for example `tokenmill serve --port 9000`.", [
        "(怎么|如何|怎样)(改|修改|设置|换)端口？", "(哪个|什么)参数(设置|修改)端口？", "我想(换|用)(一个|别的)端口。", "可以(改|换)端口吗？", "!端口怎么修改？"],
     "使用参数 --port，例如 `tokenmill serve --port 9000`。", ["--port"]),
    ("host", [
        "(What|Which) is the default host?", "(What|Which) (host|address) does (Tokenmill|the server|it) (use|listen on|bind to)?", "(What|Which) address is the default?",
        "Default host?", "To which (address|host) does the server bind?", "What's the default (host|address)?", "!Which host is used by default?"],
     "The default host is 127.0.0.1.", [
        "默认(主机|地址|的主机)是(什么|多少)？", "(Tokenmill|服务器)(监听|绑定)(哪个|什么)(地址|主机)？", "!默认的地址是哪个？"],
     "默认主机是 127.0.0.1。", ["127.0.0.1"]),
    ("set_host", [
        "How do I (change|set) the (host|address)?", "How can other machines (reach|use) the server?", "Which flag sets the (host|address)?", "How do I listen on all (addresses|interfaces)?",
        "Can I reach (it|the server) from another machine?", "!How can I set the host?"],
     "Use the flag --host, for example `tokenmill serve --host 0.0.0.0` to listen on all addresses.", [
        "(怎么|如何)(改|修改|设置)(主机|地址)？", "(哪个|什么)参数设置(主机|地址)？", "别的机器怎么访问服务器？", "!怎样设置主机？"],
     "使用参数 --host，例如 `tokenmill serve --host 0.0.0.0` 监听所有地址。", ["--host"]),
    ("default_model", [
        "(What|Which) is the default model?", "(What|Which) model is (used|served|loaded) by default?", "Which model runs if I give none?", "What happens without --model?",
        "Which model do you serve?", "Default model?", "!Which model is the default one?"],
     "The default model is `demo`, a very small model that comes with Tokenmill.", [
        "默认(模型|的模型)是(什么|哪个)？", "(不写|没有) --model 时用什么模型？", "默认(使用|运行)哪个模型？", "!默认用的是什么模型？"],
     "默认模型是 `demo`，一个随 Tokenmill 提供的很小的模型。", ["demo"]),
    ("other_model", [
        "How do I (use|serve|run|load) (another|a different|my own|a bigger|a better) model?", "How can I (use|serve|run|load|change) (another|a different|my own|a bigger|the) model?", "Can I (use|run|load) (another|a bigger|my own) model?",
        "Which flag (sets|chooses|selects) the model?", "How do I (choose|change|select|switch) the model?", "Where do I put my own model?", "!How do I point Tokenmill at another model?", "!I want to use a bigger model."],
     "Start it with --model: `tokenmill serve --model SPEC`, where SPEC is a GGUF file, a Hugging Face folder or `demo`.", [
        "(怎么|如何|怎样)(用|使用|加载|换)(别的|另一个|其他|自己的|更大的)模型？", "(哪个|什么)参数(选择|设置)模型？", "可以(用|换)(别的|其他|更大的|自己的)模型吗？", "怎么换模型？", "!我想用更大的模型。"],
     "用 --model 启动：`tokenmill serve --model SPEC`，SPEC 是 GGUF 文件、Hugging Face 文件夹或 `demo`。", ["--model", "GGUF"]),
    ("spec", [
        "What is (a SPEC|SPEC|the SPEC|a model SPEC)?", "What can (SPEC|the SPEC|--model) be?", "What does --model (take|accept|expect)?", "What (may|can) I give to --model?",
        "What model (formats|files) (can you|does it|does Tokenmill) (load|read|support)?", "Which (model formats|file formats|formats) (are supported|does Tokenmill support|does it load)?", "Does it (load|read|support) GGUF?", "Does it (load|read|support) (Hugging Face folders|safetensors)?",
        "!What values does --model accept?", "!Which model files can Tokenmill read?"],
     "SPEC is a GGUF file, a Hugging Face folder or the word `demo`.", [
        "SPEC (是什么|可以是什么)？", "--model (接受什么|后面写什么)？", "支持(哪些|什么)(模型格式|格式|文件)？", "(支持|能读) GGUF 吗？", "!能读取哪些模型文件？"],
     "SPEC 是 GGUF 文件、Hugging Face 文件夹或 `demo`。", ["GGUF", "Hugging Face"]),
    ("families", [
        "(What|Which) (model families|families|architectures|model architectures|kinds of models) (are supported|does Tokenmill support|does it support|can it run)?", "(What|Which) models (are supported|does Tokenmill support|can it run|can Tokenmill run)?",
        "Does (it|Tokenmill) (support|run) (llama|qwen2|qwen3|qwen)?", "Can (it|Tokenmill) run (llama|Llama|qwen|Qwen) models?", "Supported models?", "!Which model families does the server know?", "!Is llama supported?"],
     "Tokenmill supports the model families llama, qwen2 and qwen3.", [
        "支持(哪些|什么)(模型|模型家族|架构)？", "支持 (llama|qwen2|qwen3|qwen) 吗？", "(Tokenmill|它)能运行哪些模型？", "!能运行什么架构的模型？"],
     "Tokenmill 支持 llama、qwen2 和 qwen3 模型。", ["llama", "qwen2", "qwen3"]),
    ("flags", [
        "(What|Which) flags (are there|does serve have|does Tokenmill have|can I use|exist)?", "(What|Which) (options|flags|arguments) does (tokenmill serve|serve|the server) (take|have|accept)?", "List (the|all) (flags|options).", "Show me the (flags|options).",
        "What are the (flags|options|command line flags)?", "!Which command line options are there?"],
     "The flags of serve are --model, --port, --host, --threads, --memory, --ctx, --quantize, --data-dir and --config.", [
        "有(哪些|什么)(参数|选项)？", "serve 有(哪些|什么)(参数|选项)？", "列出(所有|全部)(参数|选项)。", "!可以用哪些参数？"],
     "serve 的参数有 --model、--port、--host、--threads、--memory、--ctx、--quantize、--data-dir 和 --config。", ["--threads", "--memory", "--ctx", "--quantize"]),
    ("threads", [
        "How do I (set|limit|change|choose) the (number of threads|threads)?", "What does --threads do?", "Which flag sets the (threads|number of threads)?", "How can I use (more|fewer) (threads|cores)?",
        "How many threads does it use?", "How do I (limit|set) the cores?", "!How can I choose how many threads it uses?"],
     "The flag --threads sets how many CPU threads are used.", [
        "(怎么|如何)设置线程(数|)？", "--threads (是什么|有什么用|做什么)？", "(哪个|什么)参数设置线程数？", "!线程数怎么设置？"],
     "参数 --threads 设置使用多少个 CPU 线程。", ["--threads"]),
    ("memory", [
        "How do I (limit|set|change) the memory?", "What does --memory do?", "Which flag (limits|sets) the memory?", "How can I limit (memory use|the memory it uses|RAM)?", "It uses too much memory.", "Can I (limit|bound) memory?",
        "!How can I bound the memory?"],
     "The flag --memory sets how much memory the server may use.", [
        "(怎么|如何)(限制|设置)内存？", "--memory (是什么|有什么用|做什么)？", "(哪个|什么)参数(限制|设置)内存？", "!内存怎么限制？"],
     "参数 --memory 设置服务器最多使用多少内存。", ["--memory"]),
    ("ctx", [
        "How do I (set|change) the context (length|size|window)?", "What does --ctx do?", "Which flag sets the context (length|size|)?", "How can I get a (longer|bigger) context?", "How long can the context be?", "!How can the context length be changed?"],
     "The flag --ctx sets the context length, in tokens.", [
        "(怎么|如何)设置上下文(长度|)？", "--ctx (是什么|有什么用|做什么)？", "(哪个|什么)参数设置上下文(长度|)？", "!上下文长度怎么设置？"],
     "参数 --ctx 设置上下文长度，单位是 token。", ["--ctx"]),
    ("quantize", [
        "How do I quantize (a model|the model|it)?", "What does --quantize do?", "Which flag quantizes the model?", "(What|Which) values does --quantize (take|accept|have)?", "How do I (use|get|turn on) (q8_0|q4_0|Q8_0|Q4_0)?", "How can I turn (on|off) quantization?", "!How can I quantize the weights?"],
     "Use the flag --quantize with q8_0, q4_0 or none.", [
        "(怎么|如何)量化模型？", "--quantize (是什么|有什么用|做什么)？", "(哪个|什么)参数(用来|)量化模型？", "!模型怎么量化？"],
     "使用参数 --quantize，值是 q8_0、q4_0 或 none。", ["--quantize", "q8_0", "q4_0"]),
    ("quantization", [
        "What is quantization?", "(Explain|Describe) quantization.", "What does quantization (mean|do)?", "Why (quantize|use quantization)?", "What is a quantized model?", "!Can you explain quantization?"],
     "Quantization stores the weights with fewer bits, so the model needs less memory and runs faster. Tokenmill has Q8_0 and Q4_0.", [
        "(什么是量化|量化是什么)？", "解释一下量化。", "为什么(要|)量化？", "!量化是什么意思？"],
     "量化用更少的位存储权重，模型占用更少的内存，运行更快。Tokenmill 有 Q8_0 和 Q4_0。", ["Q8_0", "Q4_0"]),
    ("quant_formats", [
        "(What|Which) quantization formats (are there|are supported|does it support|does Tokenmill support)?", "(What|Which) quantized formats (are there|are supported|can you use)?", "Which quantization types are supported?", "!Which formats of quantization does Tokenmill know?"],
     "The quantization formats are Q8_0 and Q4_0.", [
        "(支持|有)(哪些|什么)量化格式？", "量化格式有哪些？", "!Tokenmill 支持哪种量化格式？"],
     "量化格式是 Q8_0 和 Q4_0。", ["Q8_0", "Q4_0"]),
    ("data_dir", [
        "What does --data-dir do?", "How do I (set|change) the data (folder|directory)?", "Which flag sets the data (folder|directory)?", "Where (does it|does the server|does Tokenmill) (keep|store) (data|its data|its files)?", "!How do I choose the data directory?"],
     "The flag --data-dir sets the folder where the server keeps its data.", [
        "--data-dir (是什么|有什么用|做什么)？", "(怎么|如何)设置数据(文件夹|目录)？", "数据(存|放)在哪里？", "!数据目录怎么设置？"],
     "参数 --data-dir 设置服务器存放数据的文件夹。", ["--data-dir"]),
    ("config", [
        "How do I use a (config|configuration|settings) file?", "What does --config do?", "Which flag (reads|loads) a (config|configuration) file?", "Can I (use|write) a (config|configuration) file?", "Can settings come from a file?", "!How can I pass a configuration file?"],
     "Use `--config FILE`. The file config/default.yaml documents each setting.", [
        "(怎么|如何)(用|使用)配置文件？", "--config (是什么|有什么用|做什么)？", "可以(用|写)配置文件吗？", "!配置文件怎么用？"],
     "使用 `--config FILE`。文件 config/default.yaml 说明每个设置。", ["--config"]),
    ("settings_docs", [
        "Where are the settings documented?", "Where (is each setting explained|are the settings explained)?", "Where do I find (all|the) settings?", "What is config/default.yaml?", "Which file (documents|lists|explains) the settings?", "!Where can I read about each setting?"],
     "The file config/default.yaml documents each setting.", [
        "设置(的说明|的文档|)在哪里？", "config/default.yaml 是什么？", "在哪里(看|找到)所有设置？", "!哪里有设置的说明？"],
     "文件 config/default.yaml 说明每个设置。", ["config/default.yaml"]),
    ("order", [
        "(What|Which) is the order of (the|) settings?", "In (what|which) order are settings (read|applied|taken)?", "Which setting wins?", "(Does|Do) (flags|a flag) (win over|override) the (environment|file)?", "Does the environment override the (file|config file)?", "What is the (priority|precedence) of (the|) settings?",
        "!What takes precedence, the file or a flag?", "!Which settings override which?"],
     "Settings are read in this order: defaults, file, environment, flag. The later one wins, so a flag wins over all.", [
        "设置的(顺序|优先级)是什么？", "哪个设置优先？", "(参数|命令行参数)(优先于|会覆盖)(环境变量|配置文件)吗？", "!设置按什么顺序读取？"],
     "设置的顺序是：默认值、文件、环境变量、参数。后面的优先，所以参数优先于一切。", []),
    ("env", [
        "(What|Which) environment variables (are there|does it read|does Tokenmill read|can I use)?", "How do I (use|set) (settings|a setting) (by|with|in) (environment variables|the environment)?", "How are the environment variables named?", "What is the prefix of the environment variables?", "Can I (set the port|use settings) in the environment?", "!Which prefix do environment variables have?"],
     "Environment variables start with TOKENMILL_, for example TOKENMILL_PORT.", [
        "(支持|有)(哪些|什么)环境变量？", "(怎么|如何)用环境变量(设置|)？", "环境变量的(前缀|名字)是什么？", "!环境变量叫什么？"],
     "环境变量以 TOKENMILL_ 开头，例如 TOKENMILL_PORT。", ["TOKENMILL_"]),
    ("endpoints", [
        "(What|Which) endpoints (are there|does Tokenmill have|does the server have|do you have|exist|are supported)?", "List (the|all) endpoints.", "What are the endpoints?", "(What|Which) (routes|URLs|paths) (are there|does the server have)?", "Show me the (API|endpoints).", "!Which HTTP endpoints does the server offer?"],
     "The endpoints are POST /v1/chat/completions, POST /v1/completions, GET /v1/models, POST /tokenize, POST /detokenize, GET /health, GET /livez, GET /readyz, GET /metrics and GET /version.", [
        "有(哪些|什么)(接口|端点)？", "列出(所有|全部)(接口|端点)。", "(接口|端点)有哪些？", "!服务器提供哪些接口？"],
     "接口有 POST /v1/chat/completions、POST /v1/completions、GET /v1/models、POST /tokenize、POST /detokenize、GET /health、GET /livez、GET /readyz、GET /metrics 和 GET /version。", ["/v1/chat/completions", "/v1/models", "/metrics", "/version"]),
    ("chat", [
        "(What|Which) is the (chat endpoint|endpoint for chat)?", "(What|Which) endpoint (is for chat|do I use for chat|serves chat|answers chats)?", "How do I (chat|send a chat|send a message|send a chat request)?", "Where do I (post|send) (chat messages|messages|chats)?", "!Which endpoint should I use to chat?"],
     "Chat with POST /v1/chat/completions.", [
        "(哪个|什么)接口(用来|可以)(聊天|对话)？", "聊天(的|)接口是(什么|哪个)？", "(怎么|如何)(聊天|发送消息)？", "!对话用哪个接口？"],
     "聊天使用 POST /v1/chat/completions。", ["/v1/chat/completions"]),
    ("completions", [
        "(What|Which) endpoint (completes|continues) (text|plain text|a prompt)?", "How do I (complete|continue) (text|a prompt|plain text)?", "(What|Which) is the (completions|text completion) endpoint?", "!Which endpoint is for plain text completion?"],
     "Complete plain text with POST /v1/completions.", [
        "(哪个|什么)接口(用来|可以)(补全|续写)文本？", "(怎么|如何)(补全|续写)文本？", "!文本补全用哪个接口？"],
     "补全文本使用 POST /v1/completions。", ["POST /v1/completions"]),
    ("models", [
        "How do I (list|see|show) the models?", "(What|Which) endpoint (lists|shows) (the|) models?", "Where (do I see|is) the list of models?", "How can I see which model is (loaded|served)?", "!Which endpoint tells me the models?"],
     "List the models with GET /v1/models.", [
        "(哪个|什么)接口列出模型？", "(怎么|如何)(查看|列出)模型？", "!模型列表在哪个接口？"],
     "列出模型使用 GET /v1/models。", ["/v1/models"]),
    ("tokenize", [
        "How do I (tokenize|count the tokens of) (text|a text)?", "(What|Which) endpoint (tokenizes|turns text into tokens|counts tokens)?", "How can I (see|count|get) the tokens of a text?", "How do I turn text into (tokens|ids)?", "!Which endpoint makes tokens from text?"],
     "Use POST /tokenize to turn text into tokens.", [
        "(怎么|如何)把(文本|文字)(变成|转成) token？", "(哪个|什么)接口(分词|计算 token)？", "(怎么|如何)分词？", "!分词用哪个接口？"],
     "使用 POST /tokenize 把文本变成 token。", ["/tokenize"]),
    ("detokenize", [
        "How do I (detokenize|turn tokens into text|turn ids into text)?", "(What|Which) endpoint (detokenizes|turns tokens into text|turns ids into text)?", "How can I get text (back|) from tokens?", "!Which endpoint makes text from tokens?"],
     "Use POST /detokenize to turn tokens into text.", [
        "(怎么|如何)把 token (变成|转成|变回)(文本|文字)？", "(哪个|什么)接口把 token (变成|转成)文本？", "!token 怎么变回文本？"],
     "使用 POST /detokenize 把 token 变成文本。", ["/detokenize"]),
    ("health", [
        "How do I (check|see|know) (if|whether) the server is (healthy|up|alive|ready|running)?", "(What|Which) (is the health endpoint|endpoint is for health|endpoint shows health)?", "(What|Which) health (checks|endpoints) are there?", "What are /livez and /readyz?", "Is there a (health|readiness|liveness) (check|endpoint)?", "!How can I check the health of the server?"],
     "Use GET /health, GET /livez (is it alive) and GET /readyz (is it ready).", [
        "(怎么|如何)(检查|知道)服务器是否(正常|健康|就绪)？", "(有|)健康检查(接口|)(是什么|吗)？", "/livez 和 /readyz 是什么？", "!健康检查用哪个接口？"],
     "使用 GET /health、GET /livez（是否存活）和 GET /readyz（是否就绪）。", ["/health", "/livez", "/readyz"]),
    ("metrics", [
        "(What|Which) (is the metrics endpoint|endpoint shows metrics|endpoint has the metrics)?", "Where are the metrics?", "How do I (see|read|get|scrape) (the|) metrics?", "(What|Which) format (do|does|are) (the|) metrics (use|have|in)?", "Does it (have|support|work with) (metrics|Prometheus)?", "What is /metrics?", "!How can I monitor the server?", "!Can Prometheus scrape it?"],
     "GET /metrics shows the metrics in Prometheus format.", [
        "(指标|监控指标)在哪里？", "(怎么|如何)(查看|获取)指标？", "/metrics 是什么？", "支持 Prometheus 吗？", "指标(是|用)什么格式？", "!如何监控服务器？"],
     "GET /metrics 以 Prometheus 格式显示指标。", ["/metrics", "Prometheus"]),
    ("version", [
        "How do I (see|get|find|check) the version?", "(What|Which) endpoint shows the version?", "(What|Which) version (is this|are you|is running)?", "!Where can I see the version?"],
     "GET /version shows the version.", [
        "(怎么|如何)查看版本？", "(哪个|什么)接口显示版本？", "版本是多少？", "!在哪里看版本？"],
     "GET /version 显示版本。", ["/version"]),
    ("stream", [
        "How do I (stream|get a stream|stream answers|stream tokens|use streaming)?", "How does streaming work?", "How (can I|to) (stream|turn on streaming|enable streaming)?", "(Is|Does it) (streaming supported|support streaming|stream)?", "Can (it|you|the server) stream (answers|tokens|)?", "What is streaming?", "!How do I switch streaming on?", "!How can answers come token by token?"],
     "Send `\"stream\": true`. The answer then comes over SSE and ends with `data: [DONE]`.", [
        "(怎么|如何)(使用|打开|用)(流式输出|流式)？", "(支持|有)流式(输出|)吗？", "(怎么|如何)流式输出？", "流式输出是什么？", "!怎样打开流式输出？"],
     "发送 `\"stream\": true`。回答会通过 SSE 传来，以 `data: [DONE]` 结束。", ["\"stream\": true"]),
    ("stream_end", [
        "How does (a|the) stream end?", "How do I know (that|) the stream (is over|has ended|is done|ended)?", "What is the last (line|event) of (a|the) stream?", "What ends (a|the) stream?", "!What comes last in a stream?"],
     "A stream ends with `data: [DONE]`.", [
        "流(式输出|)(怎么|如何|以什么)结束？", "(怎么|如何)知道流(已经|)结束了？", "!流的最后一行是什么？"],
     "流以 `data: [DONE]` 结束。", ["[DONE]"]),
    ("api_key", [
        "How do I (send|use|give|pass) (an|my|the) API key?", "How does authentication work?", "How do I (authenticate|log in)?", "Where do I put (the|my) API key?", "(Are API keys supported|Does it support API keys)?", "Which header (carries|has) the API key?", "!How are API keys sent?"],
     "Send the API key in the header `Authorization: Bearer KEY`.", [
        "(怎么|如何)(使用|发送|传)(API key|API 密钥|密钥)？", "(怎么|如何)认证？", "(API key|API 密钥|密钥)放在哪里？", "!密钥怎么发送？"],
     "把密钥放在请求头 `Authorization: Bearer KEY` 里。", ["Authorization: Bearer"]),
    ("commands", [
        "(What|Which) commands (are there|does Tokenmill have|does it have|exist|can I use)?", "List (the|all) commands.", "What are the (commands|subcommands)?", "(What|Which) subcommands are there?", "!Which commands does the tokenmill program have?"],
     "The commands are serve, synth, bench and inspect.", [
        "有(哪些|什么)(命令|子命令)？", "列出(所有|全部)命令。", "Tokenmill 有(哪些|什么)命令？", "!可以用哪些命令？"],
     "命令有 serve、synth、bench 和 inspect。", ["serve", "synth", "bench", "inspect"]),
    ("language", [
        "(What|Which) (programming |)language is (Tokenmill|it|the server) written in?", "In (what|which) language (is Tokenmill|is it|is the server|are you) written?", "Is (it|Tokenmill) written in (Rust|Python|Go|C++)?", "What is Tokenmill (made with|written in)?", "!Which programming language was used for Tokenmill?"],
     "Tokenmill is written in Rust.", [
        "(Tokenmill|它|服务器)是用什么(语言|编程语言)写的？", "是用 (Rust|Python|Go) 写的吗？", "!用哪种编程语言写的？"],
     "Tokenmill 是用 Rust 写的。", ["Rust"]),
    ("licence", [
        "(What|Which) (is the|) (licence|license) (does it have|does Tokenmill have|of Tokenmill|)?", "What is the (licence|license)?", "Under (what|which) (licence|license) is (it|Tokenmill)?", "How is (it|Tokenmill) licensed?", "Is (it|Tokenmill) (open source|free)?", "!What licence does the project use?"],
     "The licence is MIT OR Apache-2.0.", [
        "(许可证|许可|协议)是什么？", "(Tokenmill|它)(用|使用)什么许可证？", "(Tokenmill|它)是(开源|免费)的吗？", "!Tokenmill 的许可证是哪个？"],
     "许可证是 MIT OR Apache-2.0。", ["MIT OR Apache-2.0"]),
    ("batching", [
        "What is (continuous |)batching?", "(Explain|Describe) (continuous |)batching.", "How does (continuous |)batching work?", "How (does it|does Tokenmill|do you) (serve|handle) many (users|conversations|requests)?", "What does continuous batching (do|mean)?", "Why is batching (useful|good)?", "!Can you explain continuous batching?"],
     "Continuous batching packs many conversations onto shared steps, so one pass over the weights serves all of them.", [
        "(什么是|)(连续批处理|批处理)(是什么|)？", "解释(一下|)(连续批处理|批处理)。", "(怎么|如何)(同时|)处理很多(对话|请求|用户)？", "!连续批处理是什么意思？"],
     "连续批处理把很多对话放进共同的步骤，读一遍权重就服务所有对话。", []),
    ("prefix_cache", [
        "What is (the|a) prefix cache?", "(Explain|Describe) (the prefix cache|prefix caching|prefix sharing).", "How does (the prefix cache|prefix caching|prefix sharing) work?", "What does the prefix cache do?", "Is there a prefix cache?", "!Can you explain the prefix cache?"],
     "The prefix cache keeps the KV blocks of text seen before, so prompts that start the same are not computed again.", [
        "(什么是|)前缀缓存(是什么|)？", "解释(一下|)前缀缓存。", "前缀缓存(有什么用|怎么工作|做什么)？", "!前缀缓存是什么意思？"],
     "前缀缓存保留见过的文本的 KV 块，开头相同的提示不用重新计算。", ["KV"]),
    ("kv_cache", [
        "What is (the|a) KV cache?", "(Explain|Describe) the KV cache.", "How does the KV cache work?", "How is the KV cache (stored|organised|kept)?", "Is the KV cache paged?", "What is paging of the KV cache?", "!How is the KV cache built?"],
     "The KV cache keeps the keys and values of past tokens. It is paged, 64 tokens per block, and shared by prefix.", [
        "(什么是|)KV 缓存(是什么|)？", "解释(一下|) KV 缓存。", "KV 缓存(怎么工作|有什么用|怎么存储)？", "!KV 缓存是什么意思？"],
     "KV 缓存保存以前 token 的键和值。它是分页的，每块 64 个 token，按前缀共享。", ["64"]),
    ("block_size", [
        "How (big|large) is a (KV |cache |)(block|page)?", "How many tokens (are in|fit in|does) a (KV |cache |)(block|page)( hold|)?", "What is the (block|page) size?", "!How many tokens per block?"],
     "A block of the KV cache holds 64 tokens.", [
        "(一个块|一块|每块|每个块)有多少(个|) token？", "块(的大小|大小)是多少？", "!KV 缓存的块有多大？"],
     "KV 缓存的一块有 64 个 token。", ["64"]),
    ("busy", [
        "What happens (if|when) (the queue is full|the server is busy|there are too many requests|the server is overloaded)?", "What does the server (answer|do|say) when (the queue is full|it is busy|it is overloaded)?", "Why (do I|did I) get (a |)(429|503)?", "What does (429|503|Retry-After) mean?", "What is (429|503|Retry-After)?", "!What if too many requests come at once?"],
     "Past the queue's bound the server answers 429 or 503 with Retry-After.", [
        "(队列满了|请求太多|服务器太忙|服务器过载)(会怎样|怎么办|时会怎样)？", "为什么(返回|得到) (429|503)？", "(429|503|Retry-After) 是什么意思？", "!服务器忙的时候会怎样？"],
     "超过队列上限时，服务器返回 429 或 503，并带有 Retry-After。", ["429", "503", "Retry-After"]),
    ("sigterm", [
        "How do I (stop|shut down|end) (the server|Tokenmill|it)?", "What (does|happens on|happens at) SIGTERM( do|)?", "How does (the server|it|Tokenmill) (stop|shut down)?", "What is draining?", "Is there a graceful shutdown?", "!How can I stop the server cleanly?"],
     "Send SIGTERM: the server drains, that is, it finishes the running requests and takes no new ones.", [
        "(怎么|如何)(停止|关闭)(服务器|Tokenmill)？", "SIGTERM (会怎样|做什么|是什么)？", "!怎样安全地停止服务器？"],
     "发送 SIGTERM：服务器会完成正在运行的请求，不再接受新的请求。", ["SIGTERM"]),
    ("loadtest", [
        "How do I (load test|test the load of|test the speed of|measure) (the server|it|Tokenmill)?", "What is tokenmill-loadtest?", "(Is there|What is|Which is) (a|the) load test (tool|)?", "Which tool (tests|makes) load?", "!Which program is the load test tool?"],
     "Use the load test tool tokenmill-loadtest.", [
        "(怎么|如何)(做|进行)(压力测试|负载测试)？", "tokenmill-loadtest 是什么？", "有(压力测试|负载测试)工具吗？", "!压力测试用什么工具？"],
     "使用负载测试工具 tokenmill-loadtest。", ["tokenmill-loadtest"]),
    ("hardware", [
        "(What|Which) hardware (do I need|does it need|does Tokenmill need|is needed)?", "(What|Which) (machine|computer) do I need?", "Do I need a GPU?", "Does it need a GPU?", "How much memory (do I|does it|does Tokenmill) need?", "How many cores (do I|does it|does Tokenmill) need?", "Does it run (without a GPU|on a CPU|on a small machine|on a laptop)?", "!What are the hardware requirements?", "!Is a GPU required?"],
     "Tokenmill needs no GPU. It runs on 2 cores and 4 GB of memory.", [
        "需要(什么|怎样的)(硬件|机器|电脑)？", "需要 GPU 吗？", "需要多少(内存|核心)？", "没有 GPU (可以|能)(运行|用)吗？", "!必须有 GPU 吗？"],
     "Tokenmill 不需要 GPU。它可以在 2 核和 4 GB 内存上运行。", ["GPU", "4 GB"]),
    ("sdk", [
        "How do I (use|point|connect) the OpenAI (SDK|client|library)( at it| to it| with it| with Tokenmill|)?", "How (can I|to) use the OpenAI (SDK|Python client|client)?", "What is the (base_url|base URL)?", "(What|Which) base_url (do I|should I) (use|set)?", "Does the OpenAI (SDK|client) work?", "!How do I use Tokenmill from Python?", "!How do I connect with the openai package?"],
     "Set base_url to http://127.0.0.1:8000/v1 in the OpenAI SDK.", [
        "(怎么|如何)(使用|连接|用) OpenAI (SDK|客户端)？", "base_url 是什么？", "base_url (写|设)什么？", "!怎样用 OpenAI 的 SDK 连接？"],
     "在 OpenAI SDK 中把 base_url 设为 http://127.0.0.1:8000/v1。", ["http://127.0.0.1:8000/v1"]),
    ("openai", [
        "Is (it|Tokenmill|the API) (OpenAI compatible|compatible with OpenAI)?", "(What|Which) API (does it|does Tokenmill|does the server) (speak|use|have)?", "Does it (speak|support|have) the OpenAI API?", "!Is the API like the OpenAI API?"],
     "Yes, Tokenmill speaks the OpenAI API, so OpenAI clients work with it.", [
        "(兼容|支持) OpenAI (API |)吗？", "(Tokenmill|它|服务器)使用什么 API？", "!API 和 OpenAI 兼容吗？"],
     "是的，Tokenmill 使用 OpenAI 的 API，OpenAI 的客户端可以直接使用。", ["OpenAI"]),
]
